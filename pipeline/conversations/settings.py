"""Settings of how prompts and conversations become text for a model."""

from dataclasses import dataclass, field
from typing import Any, Literal

PromptMode = Literal["raw", "chat"]
LastAssistant = Literal["continue", "drop", "refuse"]
SpecialTokens = Literal["text", "control", "refuse"]


@dataclass(frozen=True)
class PromptSettings:
    """The settings of the group `model` that decide the token ids of a prompt.

    ``prompt_format``: whether a prompt is tokenised unchanged (``raw``) or becomes one user message (``chat``).
    ``last_assistant``: what happens to a conversation that ends with a turn of the assistant: that turn is continued,
    it is dropped and the question before it answered, or the record is refused. ``special_tokens``: whether special
    tokens in the text of messages are text, control tokens, or a reason to refuse the record.
    ``chat_template_kwargs``: arguments of the chat template; a record's own ones come before them.
    """

    prompt_format: PromptMode = "raw"
    last_assistant: LastAssistant = "continue"
    special_tokens: SpecialTokens = "text"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
