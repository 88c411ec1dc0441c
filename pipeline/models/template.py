"""Render conversations with a model's chat template, or say which message and which key it does not take."""

import inspect
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pipeline.conversations import REASONING, PromptSettings
from pipeline.errors import UserError, one_line
from pipeline.records import Conversation, Message

from .message_forms import as_parts, forms, with_names

MARK = "\u241e"
"""A text that no template has, to find where it writes a message."""
# Arguments that say something to the model: a template that does not know them would leave it out without a word.
_MUST_BE_KNOWN = ("tools", "documents", "reasoning_effort")
# What a message without a content says; templates that write content may leave it out.
_INSTEAD_OF_CONTENT = (*REASONING, "refusal")
_MAX_BLAMED = 64  # messages from the end that may be the one that a template refuses


class PromptError(UserError):
    """Why a conversation has no prompt, in one line; ``error_type``: of its dead letter."""

    def __init__(self, message: str, error_type: str = "ChatTemplateError") -> None:
        super().__init__(message)
        self.error_type = error_type


class ChatTemplate:
    """The chat template of a tokenizer. Raises `PromptError` for what it cannot render, or would leave out."""

    def __init__(self, tokenizer: Any, settings: PromptSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._written_roles = {"assistant"}

    def arguments(self, conversation: Conversation) -> dict[str, Any]:
        """Return the arguments of the template: the record's own, or else the config's."""
        given = self._settings.chat_template_kwargs | conversation.template
        if not given:
            return given
        reserved = self._reserved & given.keys()
        if reserved:
            raise PromptError(f"chat_template_kwargs: {min(reserved)!r} is not an argument of the chat template")
        return given

    def render(self, conversation: Conversation) -> str:
        """Return the text of a conversation, up to where the model goes on.

        That is after the header of a new turn, or within the last one, by `PromptSettings.last_assistant`.
        """
        arguments = self.arguments(conversation)
        continues = arguments.pop("continue_final_message", False)
        messages, is_continued = conversation.messages, False
        if continues or conversation.ends_with_assistant:
            messages, is_continued = self._last_turn(conversation, continues)
        for name in _MUST_BE_KNOWN if arguments else ():
            if arguments.get(name) and not re.search(rf"\b{name}\b", self._source(arguments)):
                raise PromptError(f"{name}: the chat template does not write it")
        text = self._first_valid(messages, arguments, is_continued)
        for index, message in enumerate(messages):
            if message["role"] not in self._written_roles and message.get("content"):
                self._check_role(index, messages, arguments, is_continued, text)
            for keys in _only_in(message):
                if all(self._is_left_out(index, key, messages, arguments, is_continued, text) for key in keys):
                    raise PromptError(f"message {index}, key {keys[0]!r}: the chat template does not write it")
        return text

    def _last_turn(self, conversation: Conversation, continues: bool) -> tuple[list[Message], bool]:
        """Return the messages to render of a conversation that ends with the assistant; whether it is continued."""
        messages, last = list(conversation.messages), len(conversation.messages) - 1
        if not conversation.ends_with_assistant:
            raise PromptError(f"message {last}, key 'role': continue_final_message needs a turn of the assistant")
        policy = "continue" if continues else self._settings.last_assistant
        if policy == "refuse":
            raise PromptError(
                f"message {last}: a turn of the assistant is last (model.last_assistant)", "LastAssistant"
            )
        if policy == "drop":
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            if not messages:
                raise PromptError("there are only turns of the assistant (model.last_assistant=drop)", "LastAssistant")
            return messages, False
        while len(messages) > 1 and _is_to_be_filled(messages[-1]):
            messages.pop()  # transformers would cut the end of its header
        if messages[-1]["role"] != "assistant":
            return messages, False
        key = next((key for key in ("tool_calls", "function_call") if key in messages[-1]), "content")
        if key != "content" or key not in messages[-1] or _is_to_be_filled(messages[-1]):
            where = f"message {len(messages) - 1}, key {key!r}"
            advice = "only text can be continued; model.last_assistant=drop leaves it out"
            raise PromptError(f"{where}: {advice}", "LastAssistant")
        return messages, True

    def _first_valid(self, messages: list[Message], arguments: dict[str, Any], is_continued: bool) -> str:
        """Render the messages in the first form that the template takes."""
        problem = unwritten = ""
        for form in forms(messages):
            try:
                text = self._render(form, arguments, is_continued)
            except Exception as error:  # templates raise errors of many types
                problem = problem or self._blamed(form, arguments, is_continued, error)
                continue
            if form is messages:  # as nearly all are
                return text
            left_out = self._unwritten_call(form, text, arguments, is_continued)
            if not left_out:
                return text
            unwritten = unwritten or left_out  # says more than what another form lacks
        raise PromptError(unwritten or problem)

    def _unwritten_call(
        self, messages: Sequence[Message], text: str, arguments: dict[str, Any], is_continued: bool
    ) -> str:
        """Return which call is not in a rendered text, or only in Python's notation; empty if all are there."""
        marked = [with_names(message, f"{MARK}{index}.", MARK) for index, message in enumerate(messages)]
        try:
            written = self._render(marked, arguments, is_continued)
        except Exception:  # it looks at the names, so it reads the calls
            return ""
        for index, message in enumerate(messages):
            for number, call in enumerate(message.get("tool_calls", ())):
                values = call.get("function", call).get("arguments")
                is_python = isinstance(values, dict) and values and str(values) in text
                if f"{MARK}{index}.{number}{MARK}" not in written or is_python:
                    return f"message {index}, key 'tool_calls[{number}]': the chat template does not write it"
        return ""

    def _check_role(
        self, index: int, messages: list[Message], arguments: dict[str, Any], is_continued: bool, text: str
    ) -> None:
        """Raise `PromptError` if the template leaves out messages of a role, by the first one that has it."""
        role = messages[index]["role"]
        if self._is_left_out(index, "content", messages, arguments, is_continued, text):
            raise PromptError(f"message {index}, key 'role': the chat template leaves out {role!r}")
        self._written_roles.add(role)

    def _is_left_out(
        self, index: int, key: str, messages: list[Message], arguments: dict[str, Any], is_continued: bool, text: str
    ) -> bool:
        """Whether a conversation has the same text with another value of a key."""
        message = messages[index]
        value = message[key] + MARK if isinstance(message[key], str) else MARK
        changed = [*messages[:index], message | {key: value}, *messages[index + 1 :]]
        try:
            return self._first_valid(changed, arguments, is_continued) == text
        except PromptError:  # so it reads the value
            return False

    def _blamed(
        self, messages: Sequence[Message], arguments: dict[str, Any], is_continued: bool, error: Exception
    ) -> str:
        """Return which part of a conversation the template refuses: what it takes the rest without."""
        said = one_line(error) or type(error).__name__

        def fails(some: Sequence[Message], **changes: Any) -> bool:
            try:
                self._render(some, arguments | changes, is_continued and len(some) == len(messages))
            except Exception:
                return True
            return False

        if arguments.get("tools") and not fails(messages, tools=None):
            return f"tools: {said}"
        end = len(messages)
        while end > max(1, len(messages) - _MAX_BLAMED) and fails(messages[: end - 1]):
            end -= 1
        before, message = messages[: end - 1], messages[end - 1]
        for key in message:
            without = {name: value for name, value in message.items() if name != key}
            if key != "role" and not fails([*before, {"content": "text"} | without]):
                return f"message {end - 1}, key {key!r}: {said}"
        if "content" not in message and not fails([*before, message | {"content": "text"}]):
            return f"message {end - 1}, key 'content': {said}"
        return f"message {end - 1}, key 'role': {said}"

    def _render(self, messages: Sequence[Message], arguments: dict[str, Any], is_continued: bool) -> str:
        if self._takes_parts:
            messages = [as_parts(message) for message in messages]
        return self._apply(messages, arguments, is_continued)

    def _apply(self, messages: Sequence[Message], arguments: dict[str, Any], is_continued: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
            **arguments,
        )
        return text

    def _source(self, arguments: dict[str, Any]) -> str:
        source: str = self._tokenizer.get_chat_template(None, arguments.get("tools"))
        return source

    @cached_property
    def _reserved(self) -> set[str]:
        """Arguments of transformers that are none of the template: a record must not replace the template itself."""
        names = set(inspect.signature(self._tokenizer.apply_chat_template).parameters)
        return names - {"tools", "documents", "continue_final_message", "kwargs"} | {"messages"}

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template writes content only if it is a list of parts, as some multimodal models want it."""
        text = {"role": "user", "content": MARK}
        try:
            return MARK not in self._apply([text], {}) and MARK in self._apply([as_parts(text)], {})
        except Exception:
            return False


def _is_to_be_filled(message: Message) -> bool:
    """Whether a message is a turn of the assistant without a word."""
    is_empty = message["role"] == "assistant" and not message.get("content", MARK).strip()
    return is_empty and not any(message.get(key) for key in ("tool_calls", "function_call", *_INSTEAD_OF_CONTENT))


def _only_in(message: Message) -> list[list[str]]:
    """Return which keys hold what a message says besides its content; of each list, one must be written."""
    calls = [["function_call"]] if "function_call" in message else []
    is_empty = not message.get("content", "").strip() and "tool_calls" not in message
    words = [key for key in _INSTEAD_OF_CONTENT if message.get(key)] if is_empty else []
    return [*calls, words] if words else calls
