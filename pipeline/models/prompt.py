"""Turn a record's prompt or conversation into the token ids that every later stage uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal, NamedTuple, TypeVar

from pipeline.conversations import PromptSettings
from pipeline.errors import UserError
from pipeline.exact_json import dumps
from pipeline.records import Conversation, Prompt

from .control_tokens import ControlTokens
from .message_forms import with_objects
from .template import MARK, ChatTemplate, PromptError

_T = TypeVar("_T")
_SYSTEM = ("system", "developer")

_Kind = Literal["raw", "templated", "aliased"]
_KINDS: tuple[_Kind, ...] = ("raw", "templated", "aliased")


@dataclass(frozen=True)
class TokensWithOffsets:
    """Token ids of a text; ``ends``: the end of each token in the text (0: the tokenizer added it)."""

    tokens: list[int]
    text: str
    ends: list[int]


class Rendered(NamedTuple):
    """The text of a prompt; ``tokenised``: what the tokenizer gets.

    To a ``raw`` one the tokenizer adds special tokens; a template holds its own. In an ``aliased`` one some are text.
    """

    text: str
    tokenised: str
    kind: _Kind


class PromptFormat:
    """Renders and tokenises prompts for one model.

    ``raw`` prompts are tokenised unchanged; in ``chat`` mode a prompt becomes one user message. A conversation always
    goes through the model's chat template. Special tokens in its texts are text, by `PromptSettings.special_tokens`.
    """

    def __init__(self, tokenizer: Any, settings: PromptSettings | None = None) -> None:
        self.tokenizer = tokenizer
        self.settings = settings or PromptSettings()
        self._frames: dict[str, tuple[list[int], list[int]]] = {}
        self._template = ChatTemplate(tokenizer, self.settings)
        if self.settings.prompt_format == "chat" and not tokenizer.chat_template:
            raise UserError(
                "model: prompt_format=chat, but the tokenizer has no chat template; use model.prompt_format=raw"
            )
        try:
            self._template.arguments(Conversation([]))
        except PromptError as error:
            raise UserError(f"config: model.{error}") from None
        if self.settings.prompt_format == "chat":
            try:
                self._template.render(Conversation([{"role": "user", "content": "text"}]))
            except PromptError as error:
                raise UserError(f"model: the chat template does not take a prompt as a user message: {error}") from None

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt or conversation; `PromptError` for one that cannot be rendered."""
        return self.tokenise([self.render(prompt) for prompt in prompts])

    def encode_with_offsets(self, prompts: Sequence[Prompt]) -> list[TokensWithOffsets]:
        """Return the token ids of `encode` with the rendered text and their offsets in it; fast tokenizers only."""
        return self.tokenise_with_offsets([self.render(prompt) for prompt in prompts])

    def encode_text(self, texts: Sequence[str]) -> list[TokensWithOffsets]:
        """Return the token ids and offsets of texts as they stand within a template; fast tokenizers only."""
        return self.tokenise_with_offsets([self._as_data(text) for text in texts])

    def template_tokens(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """Return the token ids before and after a user message, with the messages of the system at the start.

        They are the template's; there are none for raw prompts, and for conversations that the template does not take.
        A prompt that is cut must keep them: without its end the model would continue the user's text.
        """
        conversation = self._conversation(prompt)
        if conversation is None:
            return [], []
        system = list(takewhile(lambda message: message["role"] in _SYSTEM, conversation.messages))
        template = {name: value for name, value in conversation.template.items() if name != "continue_final_message"}
        key = dumps([system, template])
        if key not in self._frames:
            if len(self._frames) > 1000:  # records may all have arguments of their own
                self._frames.clear()
            self._frames[key] = self._frame(Conversation([*system, {"role": "user", "content": MARK}], template))
        return self._frames[key]

    def _frame(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        try:
            text, tokenised, kind = self.render(conversation)
        except PromptError:
            return [], []
        parts = zip(text.rpartition(MARK)[::2], tokenised.rpartition(MARK)[::2], strict=True)
        before, after = self.tokenise([Rendered(*part, kind) for part in parts])
        return before, after

    def encode_answer(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each answer with the end-of-sequence token, as adapters are trained."""
        return self.tokenise([self._as_data(answer, self.tokenizer.eos_token) for answer in answers])

    def tokenise(self, rendered: Sequence[Rendered]) -> list[list[int]]:
        """Return the token ids of rendered prompts."""
        return _in_order(rendered, self._tokenise)

    def tokenise_with_offsets(self, rendered: Sequence[Rendered]) -> list[TokensWithOffsets]:
        """Return the token ids of rendered prompts and their offsets; fast tokenizers only."""
        return _in_order(rendered, self._tokenise_with_offsets)

    def render(self, prompt: Prompt) -> Rendered:
        """Return the text of a prompt; `PromptError` for a conversation that the template does not take."""
        conversation = self._conversation(prompt)
        if conversation is None:
            assert isinstance(prompt, str)
            return Rendered(prompt, prompt, "raw")
        if not self.tokenizer.chat_template:
            raise PromptError("the model's tokenizer has no chat template for messages")
        text = self._template.render(conversation)
        if not self._is_typed(conversation):
            return Rendered(text, text, "templated")
        control = self._control
        try:
            messages = control.marked(with_objects(conversation.messages))
            marked = Conversation(messages, control.marked(conversation.template))
            aliased = control.aliased(self._template.render(marked))
        except ValueError as error:
            raise PromptError(str(error), "SpecialToken") from None
        if control.unaliased(aliased) != text:
            message = "the chat template reads the special tokens in the text (model.special_tokens=control keeps them)"
            raise PromptError(message, "SpecialToken")
        return Rendered(text, aliased, "aliased")

    def _conversation(self, prompt: Prompt) -> Conversation | None:
        """Return a prompt as a conversation; None if it is tokenised as it is."""
        if isinstance(prompt, Conversation):
            return prompt
        is_raw = self.settings.prompt_format == "raw"
        return None if is_raw else Conversation([{"role": "user", "content": prompt}])

    def _is_typed(self, conversation: Conversation) -> bool:
        """Whether texts of a conversation hold special tokens that stay text; `PromptError` if that is refused."""
        if self.settings.special_tokens == "control":
            return False
        is_typed = False
        for index, message in enumerate(with_objects(conversation.messages)):
            self._check_typed(f"message {index}", token := self._control.first_in(message))
            is_typed |= token is not None
            token = self._control.with_role(message["role"])
            if token is not None:
                raise PromptError(f"message {index}, key 'role': it is a part of {token!r}", "SpecialToken")
        if conversation.template:
            self._check_typed("chat_template_kwargs", token := self._control.first_in(conversation.template))
            is_typed |= token is not None
        return is_typed

    def _check_typed(self, where: str, token: str | None) -> None:
        if token is not None and self.settings.special_tokens == "refuse":
            raise PromptError(f"{where}: the special token {token!r} (model.special_tokens=refuse)", "SpecialToken")

    def _as_data(self, text: str, end: str = "") -> Rendered:
        """Return a text of the data, before a special token ``end``, as it is tokenised where no template is raw."""
        is_raw = self.settings.prompt_format == "raw" or self.settings.special_tokens == "control"
        if is_raw or self._control.first_in(text) is None:
            return Rendered(text + end, text + end, "templated")
        return Rendered(text + end, self._control.aliased(self._control.marked(text) + end), "aliased")

    @cached_property
    def _control(self) -> ControlTokens:
        template = self.tokenizer.chat_template
        return ControlTokens(self.tokenizer, template if isinstance(template, str) else repr(template))

    def _tokenise(self, prompts: list[Rendered], kind: _Kind) -> list[list[int]]:
        texts = [prompt.tokenised for prompt in prompts]
        if kind == "aliased":
            return [encoding.ids for encoding in self._control.encode(texts)]
        encoded = self.tokenizer(texts, add_special_tokens=kind == "raw", return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _tokenise_with_offsets(self, prompts: list[Rendered], kind: _Kind) -> list[TokensWithOffsets]:
        texts = [prompt.tokenised for prompt in prompts]
        if kind == "aliased":
            found = [(encoding.ids, encoding.offsets) for encoding in self._control.encode(texts)]
        else:
            encoded = self.tokenizer(
                texts, add_special_tokens=kind == "raw", return_attention_mask=False, return_offsets_mapping=True
            )
            found = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        return [
            TokensWithOffsets(ids, prompt.text, [end for _, end in offsets])
            for prompt, (ids, offsets) in zip(prompts, found, strict=True)
        ]


def _in_order(rendered: Sequence[Rendered], tokenise: Callable[[list[Rendered], _Kind], list[_T]]) -> list[_T]:
    """Tokenise the prompts of each kind in one batch, results in the order of ``rendered``."""
    found: dict[int, _T] = {}
    for kind in _KINDS:
        indices = [index for index, prompt in enumerate(rendered) if prompt.kind == kind]
        if indices:
            found |= dict(zip(indices, tokenise([rendered[index] for index in indices], kind), strict=True))
    return [found[index] for index in range(len(rendered))]
