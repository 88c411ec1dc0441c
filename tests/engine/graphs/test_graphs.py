"""Recorded decode steps give the same answers. No GPU here: kernels are recorded and replayed on their addresses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, LoraSettings, Request, Sampling
from pipeline.engine.core.loop import GenerationLoop
from pipeline.engine.graphs.decode import DecodeGraphs
from pipeline.engine.graphs.record import Recording
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests import examples

MIXTURES = (
    Mixture(),
    Mixture.of({"red": 1.0}),
    Mixture.of({"cold": 1.0}),
    Mixture.of({"red": 0.5, "slow": 0.5}),
    Mixture.of({"red": 0.3, "glad": 0.3, "dark": 0.4}),
)
READS_DEVICE = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)


class Kernels(TorchDispatchMode):
    """Notes the kernels that run, as a CUDA graph does, and refuses those that a graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READS_DEVICE:
            raise RuntimeError(f"{func} reads the device while it is recorded")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        """Run them again: each reads and writes the memory that it read and wrote when it was noted."""
        for func, args, kwargs, output in self.calls:
            again = func(*args, **kwargs)
            for memory, result in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(memory, torch.Tensor) and memory.data_ptr() != result.data_ptr():
                    memory.copy_(result)


def record(run: Callable[[], torch.Tensor]) -> Recording:
    run()  # as a library's first call: what it leaves behind must not matter
    kernels = Kernels()
    with kernels:
        output = run()
    return Recording(kernels.replay, output)


class Engines:
    """An engine that records and one that does not, over one model each."""

    def __init__(self, model: Path, bank: Path, mode: Any = "auto", device: str = "cpu") -> None:
        def make(lora: LoraSettings) -> Engine:
            engine_settings = EngineSettings(batch_size=5, prefill_tokens=64, lora=lora)
            tokenizer = load_tokenizer(str(model))
            return Engine(load_model(str(model), "fp32", device), tokenizer, AdapterBank.load(bank), engine_settings)

        self.recording, self.plain = make(LoraSettings(mode)), make(LoraSettings())
        self.plain.recorder = None
        self.recording.recorder = self.recording.recorder or record

    def compare(self, requests: Sequence[Request]) -> int:
        """The number of replayed steps, after both have given the same answers."""
        replays = 0

        def record_and_count(run: Callable[[], torch.Tensor]) -> Recording:
            assert recorder is not None
            recording = recorder(run)

            def replay() -> None:
                nonlocal replays
                replays += 1
                recording.replay()

            return Recording(replay, recording.output)

        recorder, self.recording.recorder = self.recording.recorder, record_and_count
        loop = self.recording.new_loop(Sampling())
        self.recording.recorder = recorder
        answers = drain(loop, requests)
        assert answers == drain(self.plain.new_loop(Sampling()), requests)
        assert isinstance(loop.runner, DecodeGraphs)
        return replays


def drain(loop: GenerationLoop, requests: Sequence[Request]) -> dict[str, tuple[str, int]]:
    waiting, answers = list(requests), {}
    while waiting or loop.scheduler.is_busy:
        while waiting and loop.scheduler.wants_sequences:
            assert loop.add(waiting.pop(0)) is None
        for request, answer in loop.step():
            assert isinstance(answer, Completion), answer
            answers[request.id] = (answer.output, answer.completion_tokens)
    return answers


@pytest.fixture(scope="module")
def engines(tiny_model: Path, tiny_bank: Path) -> Engines:
    return Engines(tiny_model, tiny_bank)


def requests_of(shapes: Sequence[tuple[int, int, Mixture]]) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for number, (prompt, new, mixture) in enumerate(shapes):
        tokens = torch.randint(1, 600, (prompt,), generator=generator).tolist()
        sampling = Sampling(max_new_tokens=new, min_new_tokens=new, temperature=0.8 if number % 3 == 2 else 0)
        found.append(Request(str(number), tokens, mixture, sampling=sampling))
    return found


@pytest.mark.long
def test_most_steps_of_long_answers_are_replayed(engines: Engines) -> None:
    requests = requests_of([(9 + n, 40, MIXTURES[n % 5]) for n in range(10)])
    assert engines.compare(requests) > 40


@pytest.mark.long
def test_mixtures_change_between_replays(engines: Engines) -> None:
    """Rows of other mixtures take the places of those that ended; lanes and panels stay."""
    requests = requests_of([(9, 8 + n % 4, MIXTURES[1:][n % 4]) for n in range(40)])
    assert engines.compare(requests) > 20


def test_one_mixture_is_merged_and_replayed(tiny_model: Path, tiny_bank: Path) -> None:
    engines = Engines(tiny_model, tiny_bank, "merged")
    assert engines.compare(requests_of([(9 + n, 30, MIXTURES[1]) for n in range(5)])) > 15
    assert engines.recording.lora.forms == ["merged"]


def test_gather_is_not_recorded(tiny_model: Path, tiny_bank: Path) -> None:
    assert Engines(tiny_model, tiny_bank, "gather").compare(requests_of([(9, 12, MIXTURES[1])])) == 0


def test_a_recorder_that_fails_is_not_asked_again(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fail(run: Callable[[], torch.Tensor]) -> Recording:
        asked.append(run())
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engines.recording, "recorder", fail)
    assert engines.compare(requests_of([(9, 30, MIXTURES[n]) for n in range(4)])) == 0
    assert len(asked) == 1
    assert "without CUDA graphs" in caplog.text


@pytest.mark.long
@settings(max_examples=examples(15))
@given(
    st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 45), st.sampled_from(MIXTURES)),
        min_size=1,
        max_size=12,
    )
)
def test_any_requests_are_answered_alike(engines: Engines, shapes: list[tuple[int, int, Mixture]]) -> None:
    engines.compare(requests_of(shapes))


def test_rows_are_admitted_together_where_steps_are_recorded(tiny_model: Path, tiny_bank: Path) -> None:
    """An eighth of them; one by one where nothing is recorded."""
    for mode, recorded in (("auto", 3), ("gather", 1)):
        engines = Engines(tiny_model, tiny_bank, mode)
        for engine, expected in ((engines.recording, recorded), (engines.plain, 1)):
            engine.settings = replace(engine.settings, batch_size=24)
            assert engine.new_loop(Sampling()).scheduler.min_free == expected
