"""Several threads with one engine: each gets its own answers, also where a request breaks the engine."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request, Sampling
from pipeline.engine.backend import EngineLoad
from pipeline.engine.serving.recovery import Recovery
from pipeline.engine.serving.server import EngineServer
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests.engine.core.test_engine import make_requests

SAMPLED = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tiny_bank: Path) -> Iterator[Engine]:
    model = load_model(str(tiny_model), "fp32")
    settings = EngineSettings(batch_size=4, prefill_tokens=64)
    engine = Engine(model, load_tokenizer(str(tiny_model)), AdapterBank.load(tiny_bank), settings)
    yield engine
    engine.lora.detach()


@pytest.fixture
def alone(engine: Engine) -> dict[str, Any]:
    """The answers to 40 requests, from the engine itself."""
    return {request.id: answer for request, answer in engine.generate(requests_of(engine), SAMPLED)}


def requests_of(engine: Engine) -> list[Request]:
    return make_requests(40, engine.tokenizer)


def answer_in_threads(server: EngineServer, batches: Sequence[Sequence[Request]]) -> list[list[Completion | Failure]]:
    """All batches at the same time, each from its own thread."""
    start = threading.Barrier(len(batches))

    def ask(batch: Sequence[Request]) -> list[Completion | Failure]:
        start.wait()
        return server.answer(batch)

    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(ask, batches))


@pytest.mark.long
def test_batches_of_several_threads_get_their_own_answers_in_order(engine: Engine, alone: dict[str, Any]) -> None:
    server = EngineServer(engine, SAMPLED)
    requests = requests_of(engine)
    batches = [requests[start : start + 5] for start in range(0, 40, 5)]
    found = answer_in_threads(server, batches)
    assert found == [[alone[request.id] for request in batch] for batch in batches]
    assert server.answer([]) == []
    assert server.answer(requests[:3]) == [alone[request.id] for request in requests[:3]]
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        server.answer(requests[:1])


def test_rows_of_several_batches_run_in_one_pass(engine: Engine) -> None:
    server = EngineServer(engine, Sampling(max_new_tokens=12, min_new_tokens=12))
    rows: list[int] = []
    watch = engine.model.register_forward_pre_hook(
        lambda module, args, given: rows.append(given["logits_to_keep"].numel()), with_kwargs=True
    )
    answer_in_threads(server, [[request] for request in requests_of(engine)[:4]])
    server.close()
    watch.remove()
    assert max(rows) > 1


@pytest.mark.long
def test_requests_that_cannot_run_fail_alone(engine: Engine, alone: dict[str, Any]) -> None:
    server = EngineServer(engine, SAMPLED)
    good = requests_of(engine)[:3]
    found = server.answer([good[0], Request("empty", [], Mixture()), *good[1:]])
    server.close()
    assert isinstance(found[1], Failure)
    assert [found[0], *found[2:]] == [alone[request.id] for request in good]


@pytest.mark.long
def test_requests_that_break_the_engine_are_found_and_the_others_answered(
    engine: Engine, alone: dict[str, Any]
) -> None:
    errors: list[Exception] = []
    server = EngineServer(engine, SAMPLED, recovery=Recovery(engine, errors.append))
    requests = requests_of(engine)
    unknown = Mixture.of({"nobody": 1.0})
    batches = [[*requests[n : n + 6], Request(f"poison{n}", [5, 6], unknown), *requests[n + 6 : n + 9]] for n in (0, 9)]
    found = answer_in_threads(server, [*batches, requests[18:30]])
    after = server.answer(requests[30:])
    server.close()
    for answers, n in zip(found, (0, 9), strict=False):
        poisoned = answers.pop(6)
        assert isinstance(poisoned, Failure)
        assert (poisoned.error_type, "nobody" in poisoned.message) == ("UserError", True)
        assert answers == [alone[request.id] for request in requests[n : n + 9]]
    assert found[2] == [alone[request.id] for request in requests[18:30]]
    assert after == [alone[request.id] for request in requests[30:]]
    assert errors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callers_do_not_wait_for_a_thread_that_has_died(engine: Engine) -> None:
    def stop(error: Exception) -> None:
        raise SystemExit("no way to go on") from error

    server = EngineServer(engine, SAMPLED, recovery=Recovery(engine, stop))
    with pytest.raises(SystemExit, match="no way to go on"):
        server.answer([Request("poison", [5, 6], Mixture.of({"nobody": 1.0}))])
    with pytest.raises(RuntimeError, match="closed"):
        server.answer(requests_of(engine)[:1])


@pytest.mark.long
def test_the_load_is_what_the_engine_holds_while_it_works_and_nothing_after(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EngineServer(engine, SAMPLED)
    seen: list[EngineLoad] = []
    monkeypatch.setattr(engine.runner, "before_pass", lambda: seen.append(server.load()))
    requests = requests_of(engine)
    server.answer(requests)
    busiest = max(seen, key=lambda load: load.rows)
    assert (busiest.rows, busiest.max_rows) == (4, 4)
    assert max(load.waiting for load in seen) > 4
    assert max(load.mixtures for load in seen) > 1
    assert 0 < busiest.kv_positions <= busiest.kv_limit == engine.kv_tokens
    after = server.load()
    assert (after.rows, after.waiting, after.mixtures) == (0, 0, 0)
    assert after.adapter_loads >= len({name for request in requests for name in request.mixture.adapters}) > 0
    assert after.adapter_evictions == 0
    server.close()
