"""Any admission order, chunk size, budget and preemption gives the same answers; shared prefixes run once."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request, Reroute, Sampling
from pipeline.engine.core.loop import GenerationLoop
from pipeline.engine.sequence import Sequence as GeneratedSequence
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture, Spans
from tests import examples

A, B, AB = Mixture.of({"red": 1.0}), Mixture.of({"cold": 1.0}), Mixture.of({"red": 0.5, "slow": 0.5})
MIXTURES = (Mixture(), A, B, AB)
SAMPLED = Sampling(max_new_tokens=20, temperature=0.9, top_p=0.95)
FIXED = Sampling(max_new_tokens=8, min_new_tokens=8)

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def make_engine(tiny_model: Path, tiny_bank: Path) -> Iterator[MakeEngine]:
    model, tokenizer = load_model(str(tiny_model), "fp32"), load_tokenizer(str(tiny_model))
    bank = AdapterBank.load(tiny_bank)
    made: list[Engine] = []

    def make(**changes: Any) -> Engine:
        for engine in made:
            engine.lora.detach()
        made[:] = [Engine(model, tokenizer, bank, EngineSettings(**changes))]
        return made[0]

    yield make
    for engine in made:
        engine.lora.detach()


def tokens_of(seed: int, count: int) -> list[int]:
    return torch.randint(1, 600, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@cache
def make_requests() -> list[Request]:
    """Prompts of 1 to 100 tokens; many start with one of two templates; mixtures by record and by sentence."""
    requests = []
    for n in range(18):
        tokens = tokens_of(n % 2, (0, 40, 70)[n % 3]) + tokens_of(100 + n, 1 + 7 * n % 30)
        half = len(tokens) // 2
        kinds: list[Spans] = [(), (), ((0, A), (half, B)) if half else (), ((0, AB), (20, AB)) if half > 20 else ()]
        spans = kinds[n % 4]
        requests.append(Request(f"r{n}", tokens, spans[-1][1] if spans else MIXTURES[n // 2 % 4], spans))
    return requests


def sentences(request: Request, new_tokens: Sequence[int], so_far: Sequence[tuple[int, Mixture]]) -> Mixture | None:
    """A sentence starts at each token that five divides."""
    return MIXTURES[new_tokens[-1] % 4] if new_tokens[-1] % 5 == 0 and len(new_tokens) > 1 else None


def answers(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, reroute: Reroute | None = None
) -> dict[str, Completion]:
    found = {request.id: answer for request, answer in engine.generate(iter(requests), sampling, reroute)}
    return {name: answer for name, answer in found.items() if isinstance(answer, Completion)}


@pytest.fixture(scope="module")
def alone(make_engine: MakeEngine) -> dict[str, Completion]:
    """Each request in an engine of one row and large chunks, prefixes not reused."""
    return answers(make_engine(batch_size=1, reuse_prefixes=False), make_requests(), SAMPLED, sentences)


@pytest.mark.long
@settings(max_examples=examples(10))
@given(
    order=st.permutations(range(18)),
    batch_size=st.integers(1, 18),
    prefill=st.integers(3, 200),
    budget=st.integers(130, 900),
    look_ahead=st.integers(1, 20),
    reuse=st.booleans(),
)
def test_nothing_about_the_schedule_changes_an_answer(
    order: list[int],
    batch_size: int,
    prefill: int,
    budget: int,
    look_ahead: int,
    reuse: bool,
    make_engine: MakeEngine,
    alone: dict[str, Completion],
) -> None:
    engine = make_engine(
        batch_size=batch_size, prefill_tokens=prefill, kv_tokens=budget, look_ahead=look_ahead, reuse_prefixes=reuse
    )
    assert answers(engine, [make_requests()[n] for n in order], SAMPLED, sentences) == alone


def run(loop: GenerationLoop, requests: Sequence[Request]) -> tuple[dict[str, Completion | Failure], list[int]]:
    """All answers, and the positions that the cache held in each step."""
    waiting = [*requests]
    found: dict[str, Completion | Failure] = {}
    positions = []
    while waiting or loop.scheduler.is_busy:
        while waiting and loop.scheduler.wants_sequences:
            assert loop.add(waiting.pop(0)) is None
        found |= {request.id: answer for request, answer in loop.step()}
        positions.append(loop.scheduler.cache.positions)
    return found, positions


@pytest.mark.long
@pytest.mark.parametrize("budget", [200, pytest.param(420, marks=pytest.mark.slow)])
def test_rows_that_lose_their_slot_go_on_where_they_were(
    make_engine: MakeEngine, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(max_new_tokens=120, min_new_tokens=100, temperature=0.9)
    requests = [request for request in make_requests() if len(request.tokens) < 60][:7]
    alone = answers(make_engine(batch_size=1), requests, sampling, sentences)
    loop = make_engine(kv_tokens=budget).new_loop(sampling, sentences)
    freed, finish = [], loop.scheduler.finish
    monkeypatch.setattr(loop.scheduler, "finish", lambda seq: freed.append(seq) or finish(seq))
    found, positions = run(loop, requests)
    assert found == alone
    preemptions = len(freed) - len(requests)
    assert preemptions > 3
    assert max(positions) <= budget


def test_a_request_that_the_cache_cannot_hold_fails_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_tokens=40)
    fits, large = Request("fits", [5] * 32, A), Request("large", [5] * 33, A)
    found = {request.id: answer for request, answer in engine.generate([large, fits], FIXED)}
    assert isinstance(found["fits"], Completion)
    assert isinstance(found["large"], Failure)
    assert found["large"].error_type == "KvBudget"


@settings(max_examples=examples(15))
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), look_ahead=st.integers(1, 8))
def test_no_request_is_overtaken_more_often_than_the_look_ahead(
    lengths: list[int], look_ahead: int, make_engine: MakeEngine
) -> None:
    loop = make_engine(batch_size=2, look_ahead=look_ahead).new_loop(Sampling(max_new_tokens=1))
    waiting = [Request(str(n), tokens_of(n, length), Mixture()) for n, length in enumerate(lengths)]
    admitted: list[int] = []
    came: dict[int, int] = {}
    while waiting or loop.scheduler.is_busy:
        while waiting and loop.scheduler.wants_sequences:
            request = waiting.pop(0)
            came[int(request.id)] = len(admitted)
            loop.add(request)
        admitted += sorted(int(request.id) for request, _ in loop.step())
    for place, number in enumerate(admitted):
        assert place - came[number] <= 2 * look_ahead + 2
        assert sum(other > number for other in admitted[:place]) <= look_ahead + 2


def test_longer_prompts_start_first(make_engine: MakeEngine) -> None:
    loop = make_engine(batch_size=1, look_ahead=8).new_loop(Sampling(max_new_tokens=1))
    for n, length in enumerate((5, 30, 12, 50)):
        loop.add(Request(str(length), tokens_of(n, length), Mixture()))
    ended = [request.id for _ in range(4) for request, _ in loop.step()]
    assert ended == ["50", "30", "12", "5"]


def test_requests_are_read_as_they_are_needed_and_answered_as_they_finish(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_size=2, look_ahead=4)
    read: list[int] = []

    def endless() -> Iterator[Request]:
        while True:
            read.append(len(read))
            yield Request(str(read[-1]), tokens_of(read[-1], 9), A)

    stream = engine.generate(endless(), FIXED)
    before = 0
    for count in range(1, 12):
        next(stream)
        assert len(read) <= count + 2 + 4 + 1
        before = len(read)
    assert before >= 11


def test_a_pass_holds_no_more_prompt_tokens_than_set_and_never_makes_decoding_wait(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_size=6, prefill_tokens=16, reuse_prefixes=False)
    loop = engine.new_loop(FIXED)
    for n in range(12):
        loop.add(Request(str(n), tokens_of(n, 20 + n), MIXTURES[n % 4]))
    generated: dict[GeneratedSequence, list[int]] = {}
    sizes: list[int] = []
    watch = engine.model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    step = 0
    while loop.scheduler.is_busy:
        before = {row: len(row.new_tokens) for row in loop.scheduler.running if row.new_tokens}
        loop.step()
        assert sizes[-1] <= 16 + len(before)
        for row, count in before.items():
            assert len(row.new_tokens) == count + 1
            generated.setdefault(row, []).append(step)
        step += 1
    watch.remove()
    assert all(b - a == 1 for steps in generated.values() for a, b in pairwise(steps))
    assert sum(sizes) == sum(20 + n for n in range(12)) + 12 * 7


def prompt_tokens(engine: Engine, requests: Sequence[Request], loop: GenerationLoop | None = None) -> int:
    """Prompt tokens that run for these requests."""
    sizes: list[int] = []
    watch = engine.model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    found, _ = run(loop or engine.new_loop(FIXED), requests)
    watch.remove()
    assert all(isinstance(answer, Completion) for answer in found.values())
    return sum(sizes) - 7 * len(requests)


def with_template(mixture: Mixture, count: int, first: int = 0, spans: Spans = ()) -> list[Request]:
    """Prompts of 64 tokens in common and 10 of their own."""
    template = tokens_of(1, 64)
    return [Request(f"{mixture.key}{n}", template + tokens_of(50 + n, 10), mixture, spans) for n in range(first, count)]


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4, 32])
def test_a_shared_prefix_runs_once_a_mixture(make_engine: MakeEngine, batch_size: int) -> None:
    engine = make_engine(batch_size=batch_size)
    assert prompt_tokens(engine, with_template(A, 9)) == 64 + 9 * 10
    both = [request for pair in zip(with_template(A, 9), with_template(B, 9), strict=True) for request in pair]
    assert prompt_tokens(engine, both) == 2 * (64 + 9 * 10)
    assert prompt_tokens(make_engine(batch_size=batch_size, reuse_prefixes=False), both) == 2 * 9 * 74


def test_a_prefix_with_sentences_is_shared_only_as_far_as_its_mixtures_are_the_same(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_size=4)
    plain = with_template(A, 1)
    equal = with_template(A, 2, 1, ((0, A), (30, A)))
    late = with_template(A, 3, 2, ((0, A), (40, B)))  # the same for 40 tokens: two blocks of 16
    other = with_template(A, 4, 3, ((0, B), (30, A)))
    assert prompt_tokens(engine, [*plain, *equal]) == 64 + 2 * 10
    assert prompt_tokens(engine, [*plain, *late]) == 74 + 74 - 32
    assert prompt_tokens(engine, [*plain, *other]) == 2 * 74


def test_a_prefix_is_kept_for_requests_that_come_later(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_size=4)
    loop = engine.new_loop(FIXED)
    run(loop, with_template(A, 3))
    assert prompt_tokens(engine, with_template(A, 6, 3), loop) == 3 * 10


@pytest.mark.long
@pytest.mark.parametrize(("rows", "share", "budget", "prefill"), [(8, 4, 900, 200), (6, 6, 300, 40)])
def test_rows_are_admitted_together(
    rows: int,
    share: int,
    budget: int,
    prefill: int,
    make_engine: MakeEngine,
    alone: dict[str, Completion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None before so many are free; nobody waits for ever, not where the cache is full either."""
    engine = make_engine(batch_size=rows, kv_tokens=budget, prefill_tokens=prefill)
    loop = engine.new_loop(SAMPLED, sentences)
    scheduler = loop.scheduler
    scheduler.min_free = share
    schedule, scheduled = scheduler.schedule, []

    def noted() -> list[tuple[GeneratedSequence, int]]:
        chosen = schedule()
        scheduled[:] = [seq for seq, _ in chosen]
        return chosen

    monkeypatch.setattr(scheduler, "schedule", noted)
    waiting, found = [*make_requests()], {}
    while waiting or loop.scheduler.is_busy:
        while waiting and loop.scheduler.wants_sequences:
            assert loop.add(waiting.pop(0)) is None
        free, before = rows - len(scheduler.running), {*scheduler.running}
        found |= {request.id: answer for request, answer in loop.step()}
        assert scheduled
        assert {*scheduled} <= before or free >= scheduler.min_free
    assert found == alone
