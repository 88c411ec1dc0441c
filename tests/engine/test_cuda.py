"""The engine on a GPU: the same answers as on a CPU, memory that really ends, a device that is lost."""

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, LoraSettings, Request, Sampling
from pipeline.engine.attention import flash
from pipeline.engine.attention.segment import Options
from pipeline.engine.scoring.score import Choices, score_choices
from pipeline.engine.serving.server import EngineServer
from pipeline.engine.settings import EngineSettings
from pipeline.engine.vllm.mixing.products import SlotProducts, TokenWeights
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests import tiny
from tests.engine.attention.test_flash import attend_each
from tests.engine.core.test_engine import GREEDY, SAMPLED, make_requests, outputs
from tests.engine.graphs.test_graphs import MIXTURES, Engines, requests_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def make_engine(model: Path, bank: Path, device: str, **changes: Any) -> Engine:
    loaded = load_model(str(model), "fp32", device)
    return Engine(loaded, load_tokenizer(str(model)), AdapterBank.load(bank), EngineSettings(**changes))


@pytest.fixture(scope="module")
def on_cpu(tiny_model: Path, tiny_bank: Path) -> Engine:
    return make_engine(tiny_model, tiny_bank, "cpu")


@pytest.mark.parametrize("mode", ["auto", "union", "gather"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_of_a_cpu(
    on_cpu: Engine, tiny_model: Path, tiny_bank: Path, mode: Any, sampling: Sampling
) -> None:
    engine = make_engine(tiny_model, tiny_bank, "cuda", batch_size=8, lora=LoraSettings(mode))
    requests = make_requests(24, engine.tokenizer)
    assert outputs(engine, requests, sampling) == outputs(on_cpu, requests, sampling)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_merged_weights_give_the_answers_of_a_cpu(
    on_cpu: Engine, tiny_model: Path, tiny_bank: Path, mixture: Mixture
) -> None:
    engine = make_engine(tiny_model, tiny_bank, "cuda", lora=LoraSettings("merged"))
    prompts = make_requests(12, engine.tokenizer)
    requests = [Request(r.id, r.tokens, mixture) for r in prompts]
    assert outputs(engine, requests, GREEDY) == outputs(on_cpu, requests, GREEDY)
    base = [Request(r.id, r.tokens, Mixture()) for r in prompts]
    assert outputs(engine, base, GREEDY) == outputs(on_cpu, base, GREEDY)  # restored from pinned copies


def test_scores_are_those_of_a_cpu(on_cpu: Engine, tiny_model: Path, tiny_bank: Path) -> None:
    engine = make_engine(tiny_model, tiny_bank, "cuda")
    items = [Choices(request, [[5, 9, 30], [7], [11, 12]]) for request in make_requests(12, engine.tokenizer)]
    found, expected = ({item.request.id: sums for item, sums in score_choices(e, items)} for e in (engine, on_cpu))
    for name, sums in expected.items():
        assert found[name] == pytest.approx(sums, abs=1e-3)


def test_evicted_adapters_come_back_from_pinned_memory(on_cpu: Engine, tiny_model: Path, tiny_bank: Path) -> None:
    engine = make_engine(tiny_model, tiny_bank, "cuda", batch_size=2, lora=LoraSettings(adapter_slots=2))
    prompts = make_requests(48, engine.tokenizer)
    requests = [Request(r.id, r.tokens, Mixture.of({tiny.ADAPTERS[i % 8]: 1.0})) for i, r in enumerate(prompts)]
    assert outputs(engine, requests, GREEDY) == outputs(on_cpu, requests, GREEDY)
    assert engine.lora.residency.evictions > 20


def test_recorded_steps_give_the_same_answers(
    tiny_model: Path, tiny_bank: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sampled rows, mixtures that change, prompts between, and loops whose recordings have all gone."""
    engines = Engines(tiny_model, tiny_bank, device="cuda")
    for _ in range(3):
        assert engines.compare(requests_of([(9 + n, 40, MIXTURES[n % 5]) for n in range(10)])) > 40
        assert engines.compare(requests_of([(9, 8 + n % 4, MIXTURES[1:][n % 4]) for n in range(40)])) > 20
        assert engines.compare(requests_of([(5 + 23 * n, 90, MIXTURES[n]) for n in range(5)])) > 60
        gc.collect()
    assert not caplog.records
    assert torch.rand(3, device="cuda").isfinite().all()  # the device's own generator is usable beside recordings


def test_a_recorded_product_reads_the_weights_and_adapters_of_each_step() -> None:
    """One recording for batches of any length up to its own, as vLLM pads them, and for adapters that change places."""
    slots, rank, inputs, widths, used, size = 6, 8, 64, (32, 16, 16), (True, False, True), 24
    cuda = torch.device("cuda")
    weights = TokenWeights(size, slots, cuda, is_eager=False)
    products = SlotProducts(weights, rank, inputs, widths, used, torch.zeros(1, dtype=torch.bfloat16, device=cuda))
    x, base = (torch.randn(size, n, device=cuda, dtype=torch.bfloat16) for n in (inputs, sum(widths)))
    y, graph = torch.empty_like(base), torch.cuda.CUDAGraph()
    for is_recorded in (False, True):  # libraries prepare themselves before a recording
        with torch.cuda.graph(graph) if is_recorded else nullcontext():
            y.copy_(base)
            products.add_lora_linear(y, x)
    for tokens in (size, 5, 17):
        x.normal_()
        for part in (*products.slot_a, *products.slot_b):
            part.normal_(std=0.2)
        rows = torch.rand(tokens, slots) * (torch.rand(tokens, slots) < 0.5)
        weights.set_rows(rows)
        graph.replay()
        expected = base.double()
        for a, b, first in zip(products.slot_a, products.slot_b, (0, 32, 48), strict=True):
            for slot in range(slots) if a.shape[2] else ():
                change = x[:tokens].double() @ (b[slot, 0].double() @ a[slot, 0].double()).T
                expected[:tokens, first : first + b.shape[2]] += rows[:, slot : slot + 1].cuda() * change
        assert (y - expected).norm() < 1e-2 * expected.norm()
        assert torch.equal(y[tokens:], base[tokens:])


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 2, 16), (6, 1, 128), (2, 2, 256)])
def test_the_kernel_attends_as_it_should(heads: tuple[int, int, int], window: int | None) -> None:
    """Whole prompts, and pieces of some that have tokens before them."""
    asked, held, dim = heads
    generator = torch.Generator().manual_seed(asked + dim)
    lengths = [(1, 1), (7, 7), (130, 130), (5, 90), (64, 200), (1, 33)]
    borders = [torch.tensor([0, *accumulate(pair[side] for pair in lengths)]) for side in (0, 1)]
    shapes = [(int(borders[0][-1]), asked, dim)] + [(int(borders[1][-1]), held, dim)] * 2
    given = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    most = [max(pair[side] for pair in lengths) for side in (0, 1)]
    options = Options(None, window)
    expected = attend_each(*(g.float() for g in given), flash.SequenceBounds(borders[0], borders[1], *most), options)
    on_gpu = flash.SequenceBounds(borders[0].int().cuda(), borders[1].int().cuda(), *most)
    found = flash.attention(*(g.cuda() for g in given), on_gpu, options).float().cpu()
    assert (found - expected).norm() < 1e-2 * expected.norm()


def test_prompts_together_are_scored_as_apart(tmp_path: Path) -> None:
    model = tiny.make_model(tmp_path / "model", tiny.llama_config(hidden_size=64))
    bank = AdapterBank.load(tiny.make_bank(tmp_path / "bank", model))
    settings = EngineSettings(batch_size=8, prefill_tokens=64)
    sums: list[dict[str, list[float]]] = []
    for together in (True, False):
        engine = Engine(load_model(str(model), "bf16", "cuda"), load_tokenizer(str(model)), bank, settings)
        assert engine.runner.attention.flash
        engine.runner.attention.flash = together
        items = [Choices(request, [[5, 9, 30], [7], [11, 12]]) for request in make_requests(24, engine.tokenizer)]
        scored = score_choices(engine, items)
        sums.append({item.request.id: found for item, found in scored if not isinstance(found, Failure)})
    assert len(sums[0]) == 24
    apart = torch.tensor([sums[1][name] for name in sums[1]])
    found = torch.tensor([sums[0][name] for name in sums[1]])
    assert (found - apart).abs().mean() < 0.02 * apart.abs().mean()


@pytest.fixture
def wide_engine(tmp_path: Path) -> Iterator[Engine]:
    """With 32 MiB of activations in a pass of 4,096 tokens, and more."""
    config = tiny.llama_config(hidden_size=256, intermediate_size=2048, max_position_embeddings=1024)
    model = tiny.make_model(tmp_path / "model", config)
    bank = tiny.make_bank(tmp_path / "bank", model)
    yield make_engine(model, bank, "cuda", batch_size=32, prefill_tokens=4096, reuse_prefixes=False)
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_that_ends_halves_the_batch_and_changes_no_answer(wide_engine: Engine) -> None:
    generator = torch.Generator().manual_seed(5)
    requests = [
        Request(str(n), torch.randint(1, 600, (400,), generator=generator).tolist(), MIXTURES[n % 5]) for n in range(64)
    ]
    server = EngineServer(wide_engine, GREEDY)
    free = server.answer(requests)
    assert all(isinstance(answer, Completion) for answer in free)
    assert wide_engine.settings.prefill_tokens == 4096
    server.close()
    del server
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (48 << 20)
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    server = EngineServer(wide_engine, GREEDY)
    found = server.answer(requests)
    server.close()
    assert found == free
    assert wide_engine.settings.prefill_tokens < 4096


def test_a_lost_device_ends_the_process(tiny_model: Path, tiny_bank: Path) -> None:
    """A kernel's assert leaves no CUDA call of the process usable: it must end, so that it can be started again."""
    script = f"""
        import torch
        from pathlib import Path
        from pipeline.engine import Request, Sampling
        from pipeline.engine.native.backend import NativeBackend
        from pipeline.records import Mixture
        from tests.engine.test_cuda import make_engine

        engine = make_engine(Path({str(tiny_model)!r}), Path({str(tiny_bank)!r}), "cuda")
        engine.vocabulary = 10**9  # or the token would be refused before it comes to a kernel
        backend = NativeBackend(engine, Sampling(max_new_tokens=4), lambda texts: [], None, 60)
        good = [Request("a", [5, 6, 7], Mixture())]
        assert backend.answer(good)[0].completion_tokens
        print("answers", backend.answer([Request("b", [10**6], Mixture())]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "answers" not in done.stdout
    assert "device-side assert" in done.stderr or "Assertion" in done.stderr
