"""What the store of prefixes takes from seqs and gives to others."""

import pytest
import torch

from pipeline.engine.attention.slots import LayerShape, SlotCache
from pipeline.engine.core.prefixes import PrefixStore, prefix_keys
from pipeline.engine.request import Request, Sampling
from pipeline.engine.sequence import Sequence
from pipeline.records import Mixture, Spans

A, B = Mixture.of({"a": 1.0}), Mixture.of({"b": 1.0})
SHORT, LONG = range(100, 132), range(100, 164)  # LONG starts with SHORT


class Store(PrefixStore):
    """With the cache whose budget it shares."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = SlotCache([LayerShape(1, 2, 2, torch.float32)], torch.device("cpu"), 2000, self)


@pytest.fixture
def store() -> Store:
    return Store()


def waiting(store: Store, start: range, own: int, mixture: Mixture = A) -> Sequence:
    """A seq that waits with tokens ``start`` and five of its own."""
    request = Request(str(own), [*start, *range(own, own + 5)], mixture)
    seq = Sequence(request, Sampling(max_new_tokens=4), torch.Generator())
    store.add(seq)
    return seq


def admit(store: Store, seq: Sequence) -> int:
    """Tokens of the seq's prompt that it need not run."""
    seq.slot = store.cache.allocate(seq.num_tokens)
    store.admit(seq, store.cache)
    return seq.num_computed


def run(store: Store, seq: Sequence) -> None:
    """Run the seq's prompt: keys are its token ids."""
    assert seq.slot is not None
    for keys, values in seq.slot.views(seq.num_tokens):
        keys[:] = torch.tensor([float(token) for token in seq.request.tokens])[:, None]
        values[:] = -keys
    seq.slot.length = seq.num_computed = seq.num_tokens
    store.update(seq)


def test_a_sequence_waits_for_a_prefix_that_runs_and_then_takes_it(store: Store) -> None:
    first, second, other = waiting(store, LONG, 1), waiting(store, LONG, 6), waiting(store, LONG, 11, B)
    assert not store.must_wait(first)
    assert admit(store, first) == 0
    assert store.must_wait(second)
    assert not store.must_wait(other)
    assert store.positions == 64
    run(store, first)
    assert not store.must_wait(second)
    assert admit(store, second) == 64
    assert second.slot is not None
    for keys, values in second.slot.views(64):
        assert keys[0, :, 0].tolist() == [*map(float, LONG)]
        assert torch.equal(values, -keys)
    assert admit(store, other) == 0


def test_nobody_waits_for_a_sequence_that_has_left(store: Store) -> None:
    first, second = waiting(store, LONG, 1), waiting(store, LONG, 6)
    admit(store, first)
    store.cancel(first)
    assert not store.must_wait(second)
    assert store.positions == 0


def test_a_prefix_that_nobody_else_has_is_not_kept(store: Store) -> None:
    first, second = waiting(store, SHORT, 1), waiting(store, range(200, 300), 6)
    for seq in (first, second):
        admit(store, seq)
        run(store, seq)
    assert store.positions == 0


def test_a_prefix_dropped_for_the_sequence_that_would_take_it_is_run_again(store: Store) -> None:
    seqs = [waiting(store, start, own) for start, own in ((SHORT, 1), (SHORT, 6), (LONG, 11), (LONG, 16))]
    admit(store, seqs[0])
    run(store, seqs[0])
    assert admit(store, seqs[2]) == 32  # and it runs the longer prefix now
    assert not store.must_wait(seqs[1])
    assert store.evict_oldest()
    assert admit(store, seqs[1]) == 0


def test_the_store_keeps_to_its_share_and_drops_what_was_used_least_recently(store: Store) -> None:
    for number in range(20):
        start = range(1000 * number, 1000 * number + 64)
        pair = [waiting(store, start, 5), waiting(store, start, 10)]
        for seq, expected in zip(pair, (0, 64), strict=True):
            assert admit(store, seq) == expected
            run(store, seq)
            assert seq.slot is not None
            seq.slot.lane.release(seq.slot)
        assert store.positions <= 500
    assert admit(store, waiting(store, range(19000, 19064), 15)) == 64
    assert admit(store, waiting(store, range(64), 15)) == 0


def test_keys_differ_with_tokens_and_mixtures_and_with_all_before_them() -> None:
    tokens = [*range(50)]

    def keys(mixture: Mixture = A, spans: Spans = (), tokens: list[int] = tokens) -> list[bytes]:
        return prefix_keys(Request("r", tokens, mixture, spans))

    plain = keys()
    assert len(plain) == len(set(plain)) == 3
    assert keys(B, ((0, A), (7, A), (48, B))) == plain
    assert keys(A, ((0, A), (20, B)))[:1] == plain[:1]
    assert not set(keys(A, ((0, A), (20, B)))[1:]) & set(plain)
    assert not set(keys(B)) & set(plain)
    assert not set(keys(tokens=[9, *tokens[1:]])) & set(plain)
    assert len(keys(tokens=tokens[:48])) == 2  # the last token always runs: its logits are wanted
