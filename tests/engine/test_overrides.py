"""Settings of single records."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.engine import Constraint, Sampling, override_sampling, sampling_problem

BASE = Sampling(max_new_tokens=16, temperature=0.5, stop=("x",))


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, {}),
        ({"temperature": None}, {}),
        ({"max_tokens": 3, "min_tokens": 2}, {"max_new_tokens": 3, "min_new_tokens": 2}),
        ({"max_completion_tokens": 3.0}, {"max_new_tokens": 3}),
        (
            {"temperature": 1, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
            {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        ),
        ({"repetition_penalty": 1.2, "presence_penalty": -1}, {"repetition_penalty": 1.2, "presence_penalty": -1.0}),
        ({"stop": "end"}, {"stop": ("end",)}),
        ({"stop": []}, {"stop": ()}),
        ({"stop_token_ids": [1, 2], "seed": -4}, {"stop_token_ids": (1, 2), "seed": -4}),
        ({"n": 2, "logprobs": 0}, {"n": 2, "logprobs": 0}),
        ({"choices": ["a", "b"]}, {"choices": ("a", "b")}),
        ({"json_schema": {"b": 1, "a": 2}}, {"constraint": Constraint("json_schema", '{"b": 1, "a": 2}')}),
        ({"json_schema": '{"type":"null"}'}, {"constraint": Constraint("json_schema", '{"type": "null"}')}),
        ({"regex": "a+"}, {"constraint": Constraint("regex", "a+")}),
    ],
)
def test_a_record_changes_what_it_names(values: dict[str, Any], changes: dict[str, Any]) -> None:
    assert override_sampling(BASE, values) == replace(BASE, **changes)


def test_a_record_replaces_the_choices_or_the_constraint_of_all() -> None:
    by_regex = replace(BASE, constraint=Constraint("regex", "a"))
    assert override_sampling(by_regex, {"choices": ["a"]}) == replace(BASE, choices=("a",))
    assert override_sampling(replace(BASE, choices=("a",)), {"regex": "b"}).choices == ()
    assert override_sampling(by_regex, {"temperature": 0}).constraint == by_regex.constraint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 1}, "unknown setting 'heat'; there are max_new_tokens, "),
        ({"temperature": "hot"}, "'temperature' must be a number from 0, not \"hot\""),
        ({"temperature": True}, "must be a number"),
        ({"temperature": float("nan")}, "must be a number"),
        ({"top_p": 0}, "'top_p' must be a number above 0 and up to 1, not 0"),
        ({"max_tokens": 0}, "'max_tokens' must be a whole number from 1, not 0"),
        ({"max_tokens": 2.5}, "must be a whole number"),
        ({"max_tokens": 4, "max_new_tokens": 5}, "given twice"),
        ({"min_tokens": 17}, "min_new_tokens=17 is more than max_new_tokens=16"),
        ({"stop": ["a", ""]}, "none empty"),
        ({"stop_token_ids": [True]}, "a list of token ids"),
        ({"n": 2, "temperature": 0}, "needs a temperature above 0"),
        ({"n": 1000}, "from 1 to 128"),
        ({"logprobs": True}, "from 0 to 20"),
        ({"choices": []}, "'choices' must be a list of texts"),
        ({"choices": ["a", "a"]}, "given twice"),
        ({"choices": ["a"], "regex": "b"}, "choices and regex do not go together"),
        ({"json_schema": "{"}, "a JSON schema"),
        ({"json_schema": {}, "min_tokens": 2}, "min_new_tokens does not go together with json_schema"),
        ({"seed": "x" * 100}, "..."),
        ({"x" * 10**6: 1}, "unknown setting 'xxx"),
        ({"json_schema": "[" * 100_000}, "'json_schema' must be a JSON schema"),
        ({"json_schema": '{"a":' * 5000 + "1" + "}" * 5000}, "'json_schema' must be a JSON schema"),
        ({"repetition_penalty": 1e-300}, "'repetition_penalty' must be a number from 0.01 to 100, not 1e-300"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        override_sampling(BASE, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_defaults_have_no_problem() -> None:
    assert sampling_problem(Sampling()) is None
