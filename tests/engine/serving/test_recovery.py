"""Memory that ends and passes that hang: the engine goes on, or ends so that it can be started again."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Outcome, Request, Sampling
from pipeline.engine.native.backend import NativeBackend
from pipeline.engine.serving.recovery import Recovery, is_out_of_memory
from pipeline.engine.serving.server import EngineServer
from pipeline.engine.serving.watchdog import Watchdog
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests.engine.core.test_engine import make_requests

SAMPLED = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.95)


@pytest.fixture
def engine(tiny_model: Path, tiny_bank: Path) -> Iterator[Engine]:
    model = load_model(str(tiny_model), "fp32")
    settings = EngineSettings(batch_size=16, prefill_tokens=256)
    engine = Engine(model, load_tokenizer(str(tiny_model)), AdapterBank.load(tiny_bank), settings)
    yield engine
    engine.lora.detach()


def limit_tokens(engine: Engine, most: int, error: Callable[[], Exception]) -> list[int]:
    """Let passes of more tokens fail; returns a list of the tokens of each pass that was tried."""
    tried: list[int] = []

    def check(module: Any, args: Any, given: dict[str, torch.Tensor]) -> None:
        tried.append(given["input_ids"].numel())
        if tried[-1] > most:
            raise error()

    engine.model.register_forward_pre_hook(check, with_kwargs=True)
    return tried


@pytest.mark.long
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_and_changes_no_answer(engine: Engine, error: Callable[[], Exception]) -> None:
    requests = make_requests(40, engine.tokenizer)
    alone = {request.id: answer for request, answer in engine.generate(requests, SAMPLED)}
    tried = limit_tokens(engine, 80, error)
    server = EngineServer(engine, SAMPLED)
    assert server.answer(requests) == [alone[request.id] for request in requests]
    server.close()
    assert max(tried) > 80 >= tried[-1]
    assert (engine.settings.batch_size, engine.settings.prefill_tokens) in {(8, 128), (4, 64)}


def test_a_record_that_never_fits_fails_alone(engine: Engine) -> None:
    requests = make_requests(6, engine.tokenizer)
    alone = {request.id: answer for request, answer in engine.generate(requests, SAMPLED)}
    long = Request("long", [5] * 150, Mixture())
    limit_tokens(engine, 63, lambda: torch.OutOfMemoryError("CUDA out of memory"))
    server = EngineServer(engine, SAMPLED)
    *found, refused = server.answer([*requests, long])
    server.close()
    assert found == [alone[request.id] for request in requests]
    assert isinstance(refused, Failure)
    assert refused.error_type == "OutOfMemoryError"
    assert engine.settings.batch_size == 1


def test_other_errors_halve_nothing(engine: Engine) -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_out_of_memory(MemoryError())
    while engine.halve_batch():
        pass
    assert (engine.settings.batch_size, engine.settings.prefill_tokens) == (1, 64)


def delay(engine: Engine, seconds: float, until: threading.Event) -> RemovableHandle:
    def wait(module: Any, args: Any) -> None:
        until.wait(seconds)

    return engine.model.register_forward_pre_hook(wait)


@pytest.mark.long
def test_a_pass_that_hangs_is_noticed_and_slow_work_is_not(engine: Engine) -> None:
    hung, go_on = threading.Event(), threading.Event()
    engine.settings = EngineSettings(batch_size=1)
    watchdog = Watchdog(0.8, hung.set)
    engine.runner.before_pass = watchdog.start_pass
    recovery = Recovery(engine, watching=watchdog.watching)
    server = EngineServer(engine, Sampling(max_new_tokens=1, min_new_tokens=1), recovery=recovery)
    slow = delay(engine, 0.2, go_on)
    assert all(isinstance(answer, Completion) for answer in server.answer(make_requests(8, engine.tokenizer)))
    assert not hung.is_set()
    slow.remove()
    delay(engine, 60, go_on)
    asked = threading.Thread(target=server.answer, args=(make_requests(1, engine.tokenizer),))
    asked.start()
    assert hung.wait(20)
    go_on.set()
    asked.join()
    server.close()


class Halvable:
    """An engine whose batch can be halved to one."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def halve_batch(self) -> bool:
        can_halve = self.batch_size > 1
        self.batch_size = max(1, self.batch_size // 2)
        return can_halve


def numbered(count: int) -> list[Request]:
    return [Request(str(number), [5], Mixture()) for number in range(count)]


def recover(
    engine: Any, requests: list[Request], error_of: Callable[[Sequence[Request], Request], Exception | None]
) -> Any:
    """Outcomes by id, and the requests of each run. Requests before the one that raises are answered."""
    runs: list[list[str]] = []
    errors: list[Exception] = []

    def run(part: Sequence[Request]) -> Iterator[tuple[Request, Outcome]]:
        runs.append([request.id for request in part])
        for request in part:
            if error := error_of(part, request):
                raise error
            yield request, Completion(request.id, "stop", 1, 1)

    pairs = [(request.id, outcome) for request, outcome in Recovery(engine, errors.append).answer(requests, run)]
    assert len(pairs) == len(requests)
    assert all(error.__traceback__ is None for error in errors)
    return dict(pairs), runs, errors


def test_requests_that_raise_fail_alone_and_no_other_runs_twice_once_answered() -> None:
    bad = {"3": ValueError("first line\nsecond"), "8": KeyError(), "9": ValueError("")}
    outcomes, runs, errors = recover(Halvable(8), numbered(12), lambda part, request: bad.get(request.id))
    failures = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert failures == {
        "3": Failure("ValueError", "first line"),
        "8": Failure("KeyError", "the engine failed on this record alone"),
        "9": Failure("ValueError", "the engine failed on this record alone"),
    }
    assert runs[0] == [str(number) for number in range(12)]
    assert all(not {"0", "1", "2"} & {*run} for run in runs[1:])
    assert len(errors) == sum(bool({*bad} & {*run}) for run in runs)


def test_out_of_memory_runs_all_that_is_left_again_with_half_the_batch() -> None:
    engine = Halvable(8)

    def error_of(part: Sequence[Request], request: Request) -> Exception | None:
        return MemoryError() if engine.batch_size > 2 and request.id == "1" else None

    outcomes, runs, _ = recover(engine, numbered(5), error_of)
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert engine.batch_size == 2
    assert runs == [["0", "1", "2", "3", "4"], *[["1", "2", "3", "4"]] * 2]


def test_choices_that_break_the_engine_fail_alone(engine: Engine) -> None:
    sampling = Sampling(choices=("a", "b"))
    backend = NativeBackend(engine, sampling, lambda texts: [[5 + len(text)] for text in texts], None, 600)
    requests = [*make_requests(5, engine.tokenizer), Request("poison", [5, 6], Mixture.of({"nobody": 1.0}))]
    *outcomes, poisoned = backend.answer(requests)
    backend.close()
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert isinstance(poisoned, Failure)
    assert "nobody" in poisoned.message
