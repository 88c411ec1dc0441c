"""Mixtures as single adapters: their weights, their ranks, their files. None of it needs vLLM."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from pipeline.adapters import AdapterBank
from pipeline.engine.lora.operator import FusedLora
from pipeline.engine.vllm.check import RANKS, joined_rank, lora_rank
from pipeline.engine.vllm.files import MixtureFiles
from pipeline.engine.vllm.fold import fold
from pipeline.errors import UserError
from pipeline.models import load_model
from pipeline.records import Mixture
from tests import examples, tiny
from tests.engine.lora.test_lora import mixtures_strategy
from tests.engine.reference import assert_close, logits_of, merged

TOKENS = torch.randint(1, 600, (24,), generator=torch.Generator().manual_seed(3)).tolist()
MIXED = Mixture.of({"red": 0.25, "cold": 0.5, "slow": 0.25})  # all modules, rank-stabilised, patterns


@pytest.fixture(scope="module")
def bank(tiny_bank: Path) -> AdapterBank:
    return AdapterBank.load(tiny_bank)


@pytest.fixture
def files(bank: AdapterBank, tmp_path: Path) -> Iterator[MixtureFiles]:
    made = MixtureFiles(bank, str(tmp_path))
    yield made
    made.close()


@settings(max_examples=examples(20))
@given(mixture=mixtures_strategy())
def test_a_folded_mixture_is_the_weighted_sum_of_the_updates(tiny_bank: Path, mixture: Mixture) -> None:
    bank = AdapterBank.load(tiny_bank)
    folded = fold(bank, mixture)
    assert set(folded) == {module for name in mixture.adapters for module in bank.adapters[name].modules}
    for module, (a, b) in folded.items():
        assert a.shape[0] == b.shape[1]
        parts = [
            (weight, bank.adapters[name].modules[module])
            for name, weight in zip(mixture.adapters, mixture.weights, strict=True)
            if module in bank.adapters[name].modules
        ]
        expected = sum(weight * part.scale * (part.B.double() @ part.A.double()) for weight, part in parts)
        assert torch.allclose((b @ a).double(), torch.as_tensor(expected), atol=1e-5)
        assert a.shape[0] == sum(part.rank for _, part in parts)


@pytest.mark.long
@settings(max_examples=examples(10))
@given(mixture=mixtures_strategy())
def test_the_file_as_an_adapter_of_its_own_is_the_mixture(
    tiny_model: Path, tiny_bank: Path, tmp_path_factory: pytest.TempPathFactory, mixture: Mixture
) -> None:
    bank = AdapterBank.load(tiny_bank)
    files = MixtureFiles(bank, str(tmp_path_factory.mktemp("mixtures")))
    with files.holding([mixture]) as held:
        folder = Path(held[mixture].path)
        alone = AdapterBank.load(folder.parent, [folder.name])
        found = fused_logits(tiny_model, alone, Mixture.of({folder.name: 1.0}))
    files.close()
    assert_close(found, fused_logits(tiny_model, bank, mixture))
    assert_close(found, logits_of(merged(load_model(str(tiny_model), "fp32"), bank, mixture), TOKENS))


def fused_logits(model: Path, bank: AdapterBank, mixture: Mixture) -> torch.Tensor:
    loaded = load_model(str(model), "fp32")
    fused = FusedLora(loaded, bank)
    fused.set_mixtures([mixture])
    return logits_of(loaded, TOKENS)


def test_peft_reads_the_file_as_the_mixture(tiny_model: Path, bank: AdapterBank, files: MixtureFiles) -> None:
    with files.holding([MIXED]) as held:
        peft = PeftModel.from_pretrained(load_model(str(tiny_model), "fp32"), held[MIXED].path)
    assert_close(logits_of(peft, TOKENS), logits_of(merged(load_model(str(tiny_model), "fp32"), bank, MIXED), TOKENS))


def test_the_adapter_of_the_base_changes_nothing(tiny_model: Path, bank: AdapterBank, files: MixtureFiles) -> None:
    assert files.zero_adapter is not None
    folder = Path(files.zero_adapter.path)
    alone = AdapterBank.load(folder.parent, [folder.name])
    assert alone.modules == bank.modules
    found = fused_logits(tiny_model, alone, Mixture.of({folder.name: 1.0}))
    assert torch.equal(found, logits_of(load_model(str(tiny_model), "fp32"), TOKENS))


def test_probes_change_what_modules_of_one_name_do(tiny_model: Path, files: MixtureFiles) -> None:
    base = logits_of(load_model(str(tiny_model), "fp32"), TOKENS)
    with files.probing() as probes:
        assert sorted(probes) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        for name, file in probes.items():
            alone = AdapterBank.load(files.folder, [Path(file.path).name])
            assert {module.rsplit(".", 1)[-1] for module in alone.modules} == {name}
            changed = fused_logits(tiny_model, alone, Mixture.of({Path(file.path).name: 1.0}))
            assert (changed - base).abs().max() > 0.1
    assert {path.name for path in files.folder.iterdir()} == {".lock", "zero"}


def test_files_are_there_as_long_as_a_shard_holds_them(files: MixtureFiles) -> None:
    red, cold = Mixture.of({"red": 1.0}), Mixture.of({"cold": 0.5, "tall": 0.5})
    with files.holding([red, cold, red, Mixture()]) as first:
        assert set(first) == {red, cold}
        with files.holding([cold]) as second:
            assert second[cold] is first[cold]
            assert files.written == 3  # with that of the base
        assert Path(first[cold].path).is_dir()
    assert {path.name for path in files.folder.iterdir()} == {".lock", "zero"}
    with files.holding([red]) as again:
        assert again[red].name == first[red].name
        assert again[red].number != first[red].number
    assert files.removed == 3


def test_names_are_those_of_mixture_and_bank(
    bank: AdapterBank, files: MixtureFiles, tiny_bank: Path, tmp_path: Path
) -> None:
    some = [Mixture.of({"red": 1.0}), Mixture.of({"red": 0.5, "cold": 0.5}), Mixture.of({"red": 0.25, "cold": 0.75})]
    fewer = MixtureFiles(AdapterBank.load(tiny_bank, ["red", "cold"]), str(tmp_path))
    with files.holding(some) as ours, fewer.holding(some) as others:
        assert len({file.name for held in (ours, others) for file in held.values()}) == 6
        assert len({file.number for file in ours.values()}) == 3
    fewer.close()


_KILLED = """
import os, sys
from pipeline.adapters import AdapterBank
from pipeline.engine.vllm.files import MixtureFiles
from pipeline.records import Mixture
files = MixtureFiles(AdapterBank.load(sys.argv[1]), sys.argv[2])
with files.holding([Mixture.of({"red": 1.0})]):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.long
def test_what_a_killed_process_left_is_removed_and_nothing_of_one_that_lives(
    tiny_bank: Path, bank: AdapterBank, files: MixtureFiles, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tiny_bank), str(tmp_path)], check=False, env={**os.environ})
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    later = MixtureFiles(bank, str(tmp_path))
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {files.folder, later.folder}
    later.close()
    assert not later.folder.exists()


def test_a_folder_that_cannot_be_written_to_is_refused(bank: AdapterBank, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine\.folder: cannot write to .*none"):
        MixtureFiles(bank, str(tmp_path / "none"))


def mixture_rank(bank: AdapterBank, mixture: Mixture) -> int:
    """The largest rank that a mixture has at any module."""
    return max((a.shape[0] for a, _ in fold(bank, mixture).values()), default=0)


def test_the_joined_rank_is_that_of_the_largest_adapters_at_a_module(bank: AdapterBank) -> None:
    # Ranks 2 to 9, the first, fourth and seventh on all modules; glad, dark, kind have the largest.
    assert [joined_rank(bank, most) for most in (0, 1, 2, 4, 8)] == [0, 9, 17, 30, 44]
    assert mixture_rank(bank, Mixture.of({"glad": 0.5, "dark": 0.5})) == 17
    assert mixture_rank(bank, Mixture()) == 0


@given(st.sets(st.sampled_from(tiny.ADAPTERS), min_size=1, max_size=4))
def test_no_mixture_has_more_than_the_joined_rank(tiny_bank: Path, names: set[str]) -> None:
    bank = _kept(tiny_bank)
    mixture = Mixture.of(dict.fromkeys(names, 1 / len(names)))
    assert mixture_rank(bank, mixture) <= joined_rank(bank, len(names))


_banks: dict[Path, Any] = {}


def _kept(folder: Path) -> AdapterBank:
    found: AdapterBank = _banks.setdefault(folder, AdapterBank.load(folder))
    return found


def test_ranks_are_rounded_up_to_those_that_vllm_takes() -> None:
    assert [lora_rank(rank) for rank in (1, 2, 8, 33, 257, 321, 512)] == [1, 8, 8, 64, 320, 512, 512]
    assert lora_rank(RANKS[-1] + 1) is None
