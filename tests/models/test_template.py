"""What chat templates of several kinds write, and how they refuse a conversation."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.conversations import PromptSettings, read_messages
from pipeline.errors import UserError
from pipeline.models import PromptError, PromptFormat, load_tokenizer
from pipeline.records import Conversation
from tests import tiny

# Templates in the ways of well-known models: how they write tool calls, and what they refuse.
OBJECTS = (
    "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}={{ c.function.arguments | tojson }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXTS = OBJECTS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
PRINTED = OBJECTS.replace("{{ c.function.arguments | tojson }}", "{{ c.function.arguments }}")
CONCATENATED = OBJECTS.replace("[{{ m.role }}]", "[{{ m.role }}]{{ '' + m.content }}|")
NO_CALLS = tiny.TEMPLATE
TWO_ROLES = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}[{{ m.role }}]{{ m.content }};{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %};{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TRIMMED = (
    "{% for m in messages %}<{{ m.role }}>\n\n{{ m.content | trim }};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n\n{% endif %}"
)
REASONING = OBJECTS.replace(
    "[{{ m.role }}]", "[{{ m.role }}]{{ m.reasoning_content }}{{ m.function_call.name if m.function_call }}|"
)
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}
EMPTY = {"role": "assistant", "content": " \n"}
REASONED = {"role": "assistant", "reasoning_content": "why"}
OLD_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
REFUSED = {"role": "assistant", "content": "", "refusal": "no"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def call(arguments: Any, **message: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}], **message}


CALLED = [USER, call('{"a": "é"}', content=None), {"role": "tool", "content": "1", "tool_call_id": "1"}]


CALLED_WITH = '[user]hi;[assistant]f={"a": %s};[tool]1;[assistant]'


def prompts(model: Path, template: str, **settings: Any) -> PromptFormat:
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = template
    return PromptFormat(tokenizer, PromptSettings(**settings))


def rendered(form: PromptFormat, messages: list[dict[str, Any]], **template: Any) -> str:
    return form.render(Conversation(read_messages(messages), template)).text


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (OBJECTS, CALLED, CALLED_WITH % '"é"'),
        (OBJECTS, [USER, call('{"a": 12345678901234567890123}'), CALLED[2]], CALLED_WITH % "12345678901234567890123"),
        (OBJECTS, [USER, call({"a": "é"}), CALLED[2]], CALLED_WITH % '"é"'),
        (TEXTS, CALLED, CALLED_WITH % '"é"'),
        (PRINTED, CALLED, CALLED_WITH % '"é"'),
        (PRINTED, [USER, call({"a": "é"}), CALLED[2]], CALLED_WITH % '"é"'),
        (CONCATENATED, CALLED, '[user]hi|hi;[assistant]|f={"a": "é"};[tool]1|1;[assistant]'),
        (PARTS, [USER, ANSWER, USER], "[user]hi;[assistant]yes;[user]hi;[assistant]"),
        (TWO_ROLES, [USER], "[user]hi;[assistant]"),
        (REASONING, [USER, REASONED, USER], "[user]|hi;[assistant]why|;[user]|hi;[assistant]"),
        (REASONING, [USER, OLD_CALL, USER], "[user]|hi;[assistant]f|;[user]|hi;[assistant]"),
        (OBJECTS, [USER, ANSWER | REASONED, USER], "[user]hi;[assistant]yes;[user]hi;[assistant]"),
    ],
)
def test_a_conversation_is_written_as_its_template_wants_it(
    tiny_model: Path, template: str, messages: list[dict[str, Any]], text: str
) -> None:
    assert rendered(prompts(tiny_model, template), messages) == text


@pytest.mark.parametrize(
    ("template", "messages", "arguments", "said"),
    [
        (NO_CALLS, CALLED, {}, "message 1, key 'tool_calls[0]': the chat template does not write it"),
        (
            NO_CALLS,
            [{**USER, "content": "f"}, *CALLED[1:]],
            {},
            "message 1, key 'tool_calls[0]': the chat template does",
        ),
        (
            OBJECTS,
            [USER, REASONED, USER],
            {},
            "message 1, key 'reasoning_content': the chat template does not write it",
        ),
        (OBJECTS, [USER, {"role": "assistant", "thinking": "x"}, USER], {}, "message 1, key 'thinking': the chat"),
        (OBJECTS, [USER, REFUSED, USER], {}, "message 1, key 'refusal': the chat template does not write it"),
        (OBJECTS, [USER, OLD_CALL, USER], {}, "message 1, key 'function_call': the chat template does not write it"),
        (OBJECTS, [USER, OLD_CALL | {"content": "x"}, USER], {}, "message 1, key 'function_call': the chat template"),
        (
            NO_CALLS.replace("{{ m['content'] }}", "{{ '' + m['content'] }}"),
            CALLED,
            {},
            "message 1, key 'tool_calls[0]': the chat template does not write it",
        ),
        (NO_CALLS, [USER], {"tools": [TOOL]}, "tools: the chat template does not write it"),
        (OBJECTS, [USER], {"tools": [{"name": "f"}]}, "tools: 'dict object' has no attribute 'function'"),
        (OBJECTS, [USER], {"reasoning_effort": "low"}, "reasoning_effort: the chat template does not write it"),
        (OBJECTS, [USER], {"chat_template": "x"}, "chat_template_kwargs: 'chat_template' is not an argument"),
        (ALTERNATING, [USER, ANSWER, USER, USER], {}, "message 3, key 'role': roles must alternate"),
        (ALTERNATING, [{"role": "system", "content": "s"}, USER], {}, "message 0, key 'role': roles must alternate"),
        (
            TWO_ROLES,
            [USER, {"role": "developer", "content": "d"}, USER],
            {},
            "message 1, key 'role': the chat template",
        ),
        (
            OBJECTS.replace("{{ m.role }}", "{{ m.role }}{{ raise_exception('no name') if m.name }}"),
            [USER, ANSWER, {**USER, "name": "Ann"}],
            {},
            "message 2, key 'name': no name",
        ),
        (CONCATENATED.replace("{{ '' +", "{{ 1 +"), [USER], {}, "message 0, key 'role': unsupported operand"),
        (OBJECTS, [USER], {"continue_final_message": True}, "message 0, key 'role': continue_final_message needs"),
    ],
)
def test_what_a_template_does_not_take_is_named(
    tiny_model: Path, template: str, messages: list[dict[str, Any]], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(PromptError) as error:
        rendered(prompts(tiny_model, template), messages, **arguments)
    assert str(error.value).startswith(said)


def test_arguments_of_the_record_come_before_those_of_the_config(tiny_model: Path) -> None:
    form = prompts(tiny_model, THINKING, prompt_format="chat", chat_template_kwargs={"enable_thinking": False})
    assert form.render("hi").text == "[user]hi;[assistant]<think></think>"
    assert rendered(form, [USER], enable_thinking=True) == "[user]hi;[assistant]"
    assert form.tokenizer.decode(form.template_tokens("x")[1]) == ";[assistant]<think></think>"
    with pytest.raises(UserError, match=r"config: model.chat_template_kwargs: 'tokenize' is not"):
        prompts(tiny_model, THINKING, chat_template_kwargs={"tokenize": True})


@pytest.mark.parametrize(
    ("policy", "messages", "arguments", "text"),
    [
        ("continue", [USER, ANSWER], {}, "[user]hi;[assistant]yes"),
        ("continue", [USER, ANSWER | {"content": "a "}], {}, "[user]hi;[assistant]a "),
        ("continue", [USER], {}, "[user]hi;[assistant]"),
        ("drop", [USER, ANSWER], {}, "[user]hi;[assistant]"),
        ("drop", [USER, ANSWER, ANSWER], {}, "[user]hi;[assistant]"),
        ("drop", [USER, ANSWER], {"continue_final_message": True}, "[user]hi;[assistant]yes"),
        ("drop", CALLED[:2], {}, "[user]hi;[assistant]"),
    ],
)
def test_a_last_turn_of_the_assistant_is_continued_or_dropped(
    tiny_model: Path, policy: Any, messages: list[dict[str, Any]], arguments: dict[str, Any], text: str
) -> None:
    assert rendered(prompts(tiny_model, OBJECTS, last_assistant=policy), messages, **arguments) == text


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (TRIMMED, [USER, EMPTY], "<user>\n\nhi;<assistant>\n\n"),
        (TRIMMED, [USER, EMPTY, EMPTY], "<user>\n\nhi;<assistant>\n\n"),
        (TRIMMED, [USER, ANSWER, EMPTY], "<user>\n\nhi;<assistant>\n\nyes"),
        (OBJECTS, [USER, EMPTY | {"content": ""}], "[user]hi;[assistant]"),
        (REASONING, [USER, EMPTY | REASONED], "[user]|hi;[assistant]why| \n"),
    ],
)
def test_an_empty_last_turn_of_the_assistant_is_one_to_be_filled(
    tiny_model: Path, template: str, messages: list[dict[str, Any]], text: str
) -> None:
    assert rendered(prompts(tiny_model, template), messages) == text


@pytest.mark.parametrize(
    ("policy", "messages", "said"),
    [
        ("continue", [EMPTY], "message 0, key 'content': only text can be continued"),
        ("continue", [USER, OLD_CALL | {"content": "x"}], "message 1, key 'function_call': only text can"),
        ("refuse", [USER, ANSWER], "message 1: a turn of the assistant is last (model.last_assistant)"),
        ("drop", [ANSWER], "there are only turns of the assistant (model.last_assistant=drop)"),
        ("continue", CALLED[:2], "message 1, key 'tool_calls': only text can be continued"),
        ("continue", [USER, {"role": "assistant", "thinking": "x"}], "message 1, key 'content': only text can"),
    ],
)
def test_a_last_turn_that_cannot_be_used_is_named(
    tiny_model: Path, policy: Any, messages: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(PromptError) as error:
        rendered(prompts(tiny_model, OBJECTS, last_assistant=policy), messages)
    assert str(error.value).startswith(said)
    assert error.value.error_type == "LastAssistant"
