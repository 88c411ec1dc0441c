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

VLLM = VllmSettings(adapter_slots=4)


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
            {"sentences": SentenceSettings(), "sampling": Sampling(presence_penalty=1.0)},
            "config: generation: engine=vllm: JSON, regex, grammars, presence and frequency penalties do not go with"
            " routing.granularity=sentence; use engine=native",
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
        tiny.make_adapter(tmp_path / "large" / name, {"model.layers.0.mlp.up_proj": (48, 64)}, 513 - number, number)
    large = replace(settings, bank=str(tmp_path / "large"))
    with pytest.raises(UserError, match=r"has rank 513 at model\.layers\.0\.mlp\.up_proj, above 512, which"):
        check_models(large)


@pytest.mark.usefixtures("installed")
def test_mixtures_of_more_adapters_than_slots(settings: JobSettings) -> None:
    assert check_models(replace(settings, routing=RoutingPolicy(max_adapters=4, gate=False)))[0] == tiny.CONTEXT
    for policy in (RoutingPolicy(max_adapters=5, gate=False), RoutingPolicy(max_adapters=3, fallback="all")):
        with pytest.raises(UserError, match=r"engine\.adapter_slots=4: mixtures may have [58] adapters; raise it"):
            check_models(replace(settings, routing=policy))


@pytest.mark.usefixtures("installed")
def test_a_run_keeps_its_engine(settings: JobSettings) -> None:
    Path(settings.input).mkdir()
    (Path(settings.input) / "a.jsonl").write_text('{"prompt": "red1"}\n')
    guards = [
        prepare(replace(settings, engine=engine), RunFolder(settings.output)).guard
        for engine in (VLLM, EngineSettings())
    ]
    assert changes(*guards) == ["engine.backend (was 'vllm', is 'native')"]
