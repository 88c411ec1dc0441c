"""Prompts that attend in one call: what is written, read and masked. The kernel itself needs a GPU (test_cuda)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MistralConfig

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Request, Sampling
from pipeline.engine.attention import flash
from pipeline.engine.attention.segment import Options
from pipeline.engine.attention.slots import LayerShape
from pipeline.engine.scoring.score import Choices, score_choices
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests import examples, tiny
from tests.engine.graphs.test_graphs import MIXTURES

WINDOW = 24


def attend_each(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: flash.SequenceBounds, options: Options
) -> torch.Tensor:
    """As `flash.attention`, sequence by sequence and in fp32."""
    found = torch.full_like(query, float("nan"))
    groups = query.shape[1] // key.shape[1]
    queries, keys = bounds.queries.tolist(), bounds.keys.tolist()
    assert (queries[-1], keys[-1]) == (len(query), len(key))
    for q0, q1, k0, k1 in zip(queries, queries[1:], keys, keys[1:], strict=False):
        assert q1 - q0 <= bounds.max_queries
        assert k1 - k0 <= bounds.max_keys
        own = torch.arange(k1 - k0 - (q1 - q0), k1 - k0).unsqueeze(1)
        hidden = torch.arange(k1 - k0) > own
        if options.window is not None:
            hidden |= torch.arange(k1 - k0) <= own - options.window
        k, v = (part[k0:k1].repeat_interleave(groups, 1).transpose(0, 1) for part in (key, value))
        scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
        scores = (query[q0:q1].transpose(0, 1) @ k.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        found[q0:q1] = (scores.softmax(-1) @ v).transpose(0, 1)
    return found


class Pair:
    """An engine whose prompts attend in one call, and one where each attends alone."""

    def __init__(self, folder: Path, config: Any = None) -> None:
        model, changes = tiny.make_model(folder / "model", config), {"batch_size": 6, "prefill_tokens": 64}
        bank = AdapterBank.load(tiny.make_bank(folder / "bank", model))
        self.plain, self.together = (
            Engine(load_model(str(model), "fp32"), load_tokenizer(str(model)), bank, EngineSettings(**changes))
            for _ in range(2)
        )
        self.together.runner.attention.flash = True


@pytest.fixture(scope="module", params=["full", "window"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    values = {name: value for name, value in tiny.llama_config().to_diff_dict().items() if name != "model_type"}
    config = MistralConfig(**values, sliding_window=WINDOW) if request.param == "window" else None
    return Pair(tmp_path_factory.mktemp(request.param), config)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[flash.SequenceBounds]:
    made: list[flash.SequenceBounds] = []

    def attention(*args: Any) -> torch.Tensor:
        made.append(args[3])
        return attend_each(*args)

    monkeypatch.setattr(flash, "attention", attention)
    return made


def answers_of(engine: Engine, requests: list[Request]) -> dict[str, Any]:
    found = {request.id: answer for request, answer in engine.generate(requests, Sampling(max_new_tokens=6))}
    assert all(isinstance(answer, Completion) for answer in found.values())
    return found


@pytest.mark.long
@settings(max_examples=examples(10), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 60), st.sampled_from(MIXTURES)), min_size=1, max_size=10),
    st.integers(0, 5),
)
def test_answers_are_those_of_prompts_alone(
    pair: Pair, calls: list[flash.SequenceBounds], shapes: list[tuple[int, int, Mixture]], seed: int
) -> None:
    """Prompts in pieces, with prefixes in common and of several lanes."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(1, 600, (60,), generator=generator).tolist()
    requests = [
        Request(str(n), shared[:common] + torch.randint(1, 600, (own,), generator=generator).tolist(), mixture)
        for n, (own, common, mixture) in enumerate(shapes)
    ]
    assert answers_of(pair.together, requests) == answers_of(pair.plain, requests)
    if any(own + common > 1 for own, common, _ in shapes):
        assert calls


def test_pieces_and_prefixes_are_read_from_the_cache(pair: Pair, calls: list[flash.SequenceBounds]) -> None:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(1, 600, (100,), generator=generator).tolist()
    requests = [Request(str(n), [*shared, 5 + n, 6, 7], MIXTURES[n % 2]) for n in range(8)]
    assert answers_of(pair.together, requests) == answers_of(pair.plain, requests)
    several = [len(made.queries) > 2 for made in calls]
    longer = [bool((made.keys != made.queries).any()) for made in calls]
    assert any(several)
    assert any(longer)
    assert not all(longer)


def test_choices_are_scored_alike(pair: Pair) -> None:
    """Their prompts attend together, the branches after them apart."""
    items = [Choices(Request(str(n), [5 + n] * (3 + 9 * n), MIXTURES[n % 5]), [[7, 8], [9]]) for n in range(6)]
    together, plain = (
        {item.request.id: sums for item, sums in score_choices(engine, items)} for engine in (pair.together, pair.plain)
    )
    for name, sums in plain.items():
        assert together[name] == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"window": 4}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"value_dim": 32}, False),
        ({"key_dim": 12, "value_dim": 12}, False),
        ({"key_dim": 512, "value_dim": 512}, False),
        ({"capped": True}, False),
    ],
)
def test_layers_that_the_kernel_takes(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    common: dict[str, Any] = {"heads": 2, "key_dim": 64, "value_dim": 64, "dtype": torch.bfloat16}
    shapes = [LayerShape(**common), LayerShape(**common | changes)]
    assert flash.can_use_flash(shapes, torch.device("cuda")) is fits
    assert not flash.can_use_flash(shapes, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not flash.can_use_flash(shapes, torch.device("cuda"))
