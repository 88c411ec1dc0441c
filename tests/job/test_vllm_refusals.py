"""What engine=vllm does not do is refused before any work, and a run keeps its engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import EngineSettings, Sampling, registry
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from pipeline.job.guard import changes
from pipeline.job.preflight import check_models, prepare
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.settings import JobSettings
from pipeline.storage.output.run import RunFolder
from tests import tiny
from tests.stages import tiny_job

VLLM = VllmSettings(max_loras=3)


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    return tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, engine=VLLM)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"sentences": SentenceSettings()},
            "config: routing.granularity=sentence: engine=vllm gives each request one mixture; use engine=native",
        ),
        (
            {"sampling": Sampling(temperature=2.5)},
            "config: generation: engine=vllm: temperature 2.5: the engine takes 2 at most",
        ),
    ],
)
def test_settings_that_vllm_does_not_take(settings: JobSettings, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_models(replace(settings, **change))


@pytest.mark.usefixtures("installed")
def test_quantised_models_are_refused(settings: JobSettings) -> None:
    model = replace(settings.model, quantization="8bit")
    with pytest.raises(
        UserError, match=r"model\.quantization=8bit: engine=vllm does not load such models; use engine=native"
    ):
        check_models(replace(settings, model=model))


@pytest.mark.usefixtures("installed")
def test_a_bank_of_too_large_ranks(settings: JobSettings, tiny_model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(tiny.ADAPTERS):
        tiny.make_adapter(tmp_path / "large" / name, {"model.layers.0.mlp.up_proj": (48, 64)}, 150, number)
    large = replace(settings, bank=str(tmp_path / "large"), routing=RoutingPolicy(max_adapters=4, gate=False))
    with pytest.raises(UserError, match="mixtures of 4 adapters of this bank may have rank 600"):
        check_models(large)
    few = RoutingPolicy(max_adapters=3, fallback="nearest")
    assert check_models(replace(large, routing=few))[0] == tiny.CONTEXT
    with pytest.raises(UserError, match=r"mixtures of 8 adapters .* rank 1200, .* do without routing\.fallback=all"):
        check_models(replace(large, routing=replace(few, fallback="all")))
    native = VllmSettings(over_rank="native")
    assert check_models(replace(large, engine=native))[0] == tiny.CONTEXT
    assert check_models(replace(large, routing=RoutingPolicy(max_adapters=3, gate=False)))[0] == tiny.CONTEXT


@pytest.mark.usefixtures("installed")
def test_a_run_keeps_its_engine_and_shards_have_the_mixtures_it_takes(settings: JobSettings) -> None:
    Path(settings.input).mkdir()
    (Path(settings.input) / "a.jsonl").write_text('{"prompt": "red1"}\n')
    guards = [
        prepare(replace(settings, engine=engine), RunFolder(settings.output)).guard
        for engine in (VLLM, EngineSettings())
    ]
    assert changes(*guards) == ["engine.backend (was 'vllm', is 'native')"]
    assert settings.shard_mixtures == 3
    assert replace(settings, engine=EngineSettings()).shard_mixtures == 0
