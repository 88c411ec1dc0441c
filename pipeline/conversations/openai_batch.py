"""Requests of the OpenAI batch API: the `body` of a request becomes the columns of a record.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [...], ...}}

`body.messages` or `body.prompt` is the prompt; `chat_template_kwargs`, and `tools` that must not be called, reach the
chat template. Sampling keys become the record's own settings. Keys that cannot change the answer, or whose value is the
one without effect, are accepted; any other key makes the record a dead letter that names it. `body.model` and `url` are
passed through.
"""

from typing import Any

from pipeline.exact_json import dumps

from .messages import json_value

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ID, MODEL, URL, SAMPLING = "custom_id", "request_model", "request_url", "sampling"
TOOLS, TEMPLATE = "tools", "chat_template_kwargs"

# Keys of the API and of vLLM's server that change who pays, what is logged or how fast it goes, but no answer.
_NO_EFFECT = {
    *("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "stream_options", "prediction", "priority", "request_id", "cache_salt"),
    "parallel_tool_calls",  # of calls, which no answer has
}
# Keys that are not supported, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "logit_bias": ({},),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
}
_TO_TEMPLATE = ("reasoning_effort", "documents", "continue_final_message")


def arrange(values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Turn a request into a row with `custom_id`, `prompt` or `messages`, `sampling` and the passed-through columns.

    Returns the values of the row, and why they cannot be used, else empty.
    """
    body, url = json_value(values.get("body")), values.get("url")
    known = {ID: values.get(ID), URL: url if isinstance(url, str) else None}
    if url not in (CHAT, TEXT):
        return known, f"url is {str(url)[:100]!r}; only {CHAT} and {TEXT} are answered"
    if not isinstance(body, dict):
        return known, "body is not an object"
    body = {key: value for key, value in body.items() if value is not None}
    known[MODEL] = body.get("model")
    try:
        return known | (_chat(body) if url == CHAT else _text(body)), ""
    except ValueError as error:
        return known, str(error)


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    template = _template(body)
    tools = body.pop("tools", None)
    if tools and body.get("tool_choice") != "none":
        raise ValueError("tools: calls are not read from answers; with tool_choice=none the prompt lists the tools")
    row = {"messages": body.pop("messages", None), SAMPLING: _dumped(_settings(_without_neutral(body), is_chat=True))}
    return row | ({TOOLS: _dumped(tools)} if tools else {}) | ({TEMPLATE: _dumped(template)} if template else {})


def _text(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.pop("prompt", None)
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise ValueError("prompt: a list that is not one text; give each prompt a request of its own")
        [prompt] = prompt
    if body.get("add_special_tokens") is True:  # the default here
        del body["add_special_tokens"]
    return {"prompt": prompt, SAMPLING: _dumped(_settings(_without_neutral(body), is_chat=False))}


def _template(body: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of the chat template out of a body."""
    given = body.pop(TEMPLATE, {})
    if not isinstance(given, dict):
        raise ValueError(f"{TEMPLATE} is not an object")
    for key in _TO_TEMPLATE:
        if body.get(key) not in (None, [], False):
            given = given | {key: body[key]}
        body.pop(key, None)
    if given.get("continue_final_message") is True and body.get("add_generation_prompt") is False:
        del body["add_generation_prompt"]
    return given


def _without_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """Leave out what asks for nothing; `ValueError` for a key that would have an effect."""
    if body.get("best_of") == body.get("n", 1):
        body = body | {"best_of": 1}
    for key in _NEUTRAL.keys() & body.keys():
        if body[key] not in _NEUTRAL[key]:
            value = dumps(body[key])
            raise ValueError(f"{key}={value if len(value) <= 60 else value[:57] + '...'} is not supported")
    return {key: value for key, value in body.items() if key not in _NO_EFFECT and key not in _NEUTRAL}


def _settings(body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    """Sampling settings by the names that records may use; `ValueError` for a setting that is not supported."""
    settings = dict(body)
    if "response_format" in settings:
        settings |= _constraint(settings.pop("response_format"))
    if is_chat:
        has_logprobs, top = settings.pop("logprobs", False), settings.pop("top_logprobs", 0)
        if has_logprobs is True:
            settings["logprobs"] = top
        elif has_logprobs is not False or top != 0:
            raise ValueError("logprobs is neither true nor false, or top_logprobs is given without it")
    return settings


def _constraint(response_format: Any) -> dict[str, Any]:
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    wrapper = response_format.get("json_schema") if kind == "json_schema" else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("response_format is none of text, json_object and json_schema with a schema")
    return {"json_schema": schema}


def _dumped(value: Any) -> str | None:
    """Return a value as JSON, and None for one that says nothing."""
    return dumps(value) if value else None
