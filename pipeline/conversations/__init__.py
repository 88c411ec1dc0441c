"""Conversations: one form of messages for every layout of an input, and the settings of their prompts.

`layouts` turns rows into columns, `messages` checks messages; `pipeline.models` renders and tokenises them.
"""

from .last_text import last_text, with_last_text
from .layouts import Layout, arrange, consumed_columns, hint
from .messages import REASONING, json_value, messages_in_text, read_arguments, read_messages, read_tools, without_nulls
from .settings import LastAssistant, PromptMode, PromptSettings, SpecialTokens
from .sharegpt import are_turns

__all__ = [
    "REASONING",
    "LastAssistant",
    "Layout",
    "PromptMode",
    "PromptSettings",
    "SpecialTokens",
    "are_turns",
    "arrange",
    "consumed_columns",
    "hint",
    "json_value",
    "last_text",
    "messages_in_text",
    "read_arguments",
    "read_messages",
    "read_tools",
    "with_last_text",
    "without_nulls",
]
