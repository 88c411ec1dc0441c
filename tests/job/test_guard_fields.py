"""The guard of a run: whatever decides the output, a command that finishes the run must have it alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversations import PromptSettings
from pipeline.engine import Sampling
from pipeline.engine.settings import EngineSettings
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from pipeline.job import preflight as prepare_module
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import ModelChecks
from pipeline.routing import PartSettings, RoutingPolicy, SentenceSettings
from pipeline.settings import JobSettings
from pipeline.storage.input.columns import Columns
from pipeline.storage.output.run import RUN
from tests.stages import MODEL, default_job

PARTS = {"model": "m", "bank": "b", "router": "r", "tokenizer": "t"}
SENTENCES = SentenceSettings()
# What the message says of a setting, and settings that differ in it from those of the run.
CHANGES: dict[str, dict[str, Any]] = {
    "columns.id": {"columns": Columns(id="prompt")},
    "columns.layout": {"columns": Columns(layout="openai_batch")},
    "long_prompts": {"long_prompts": "truncate_left"},
    "output.keep_prompt": {"keep_prompt": True},
    "generation.max_new_tokens": {"sampling": Sampling(max_new_tokens=9)},
    "generation.temperature": {"sampling": Sampling(max_new_tokens=8, temperature=0.5)},
    "routing.top_p": {"routing": RoutingPolicy(top_p=0.5)},
    "routing.gate": {"routing": RoutingPolicy(gate=False)},
    "routing.granularity": {"sentences": SENTENCES},
    "seed": {"engine": EngineSettings(seed=1)},
    "engine.backend": {"engine": VllmSettings()},
    "dtype": {"model": replace(MODEL, dtype="bf16")},
    "quantization": {"model": replace(MODEL, quantization="8bit")},
    "prompt_format": {"model": replace(MODEL, prompts=PromptSettings("chat"))},
    "last_assistant": {"model": replace(MODEL, prompts=PromptSettings(last_assistant="drop"))},
    "special_tokens": {"model": replace(MODEL, prompts=PromptSettings(special_tokens="control"))},
    "chat_template_kwargs.thinking": {
        "model": replace(MODEL, prompts=PromptSettings(chat_template_kwargs={"thinking": 0}))
    },
    "window.records": {"window_records": 7},
    "limit": {"limit": 1},
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fingerprints of model, bank and router as the checks find them; no such parts are there."""
    found = dict(PARTS)
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: ModelChecks(1000, found, [], settings.routing))
    return found


@pytest.fixture
def begun(tmp_path: Path, parts: dict[str, str]) -> JobSettings:
    """Settings of a run that has just begun; it can be continued with them."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"id": "a", "prompt": "red1"}\n')
    url, out = str(tmp_path / "in"), str(tmp_path / "out")
    settings = default_job(url, out, sampling=Sampling(max_new_tokens=8))
    begin(settings)
    GenerateJob(settings).prepare()
    return settings


def begin(settings: JobSettings) -> None:
    job = GenerateJob(settings)
    job.folder.write_json(RUN, {"guard": job.prepare(new_run=True).guard, "schemas": {}})


def difference(settings: JobSettings) -> str:
    with pytest.raises(UserError) as caught:
        GenerateJob(settings).prepare()
    message = str(caught.value)
    assert message.startswith(f"run: {settings.output} holds a run that differs in ")
    return message


@pytest.mark.parametrize(("key", "changes"), CHANGES.items(), ids=CHANGES)
def test_a_run_is_not_continued_with_another_setting(begun: JobSettings, key: str, changes: dict[str, Any]) -> None:
    assert f" {key} (was " in difference(replace(begun, **changes))


@pytest.mark.parametrize("part", ["model", "bank", "router"])
def test_a_run_is_not_continued_with_another_part(begun: JobSettings, parts: dict[str, str], part: str) -> None:
    parts[part] = "other"
    assert f"differs in fingerprints.{part} (was {PARTS[part]!r}, is 'other')" in difference(begun)


def test_a_run_is_not_continued_with_other_sentences(begun: JobSettings) -> None:
    divided = replace(begun, sentences=SENTENCES)
    begin(divided)
    said = difference(replace(divided, sentences=replace(SENTENCES, context_sentences=0)))
    assert "differs in routing.context_sentences (was 2, is 0)" in said


def test_a_run_is_not_continued_with_other_parts(begun: JobSettings) -> None:
    assert "routing.granularity (was 'record', is 'parts')" in difference(replace(begun, parts=PartSettings()))
    begin(replace(begun, parts=PartSettings()))
    assert "routing.language (was 'en', is 'de')" in difference(replace(begun, parts=PartSettings("de")))


def test_a_run_is_not_continued_with_another_input(begun: JobSettings) -> None:
    (Path(begun.input) / "b.jsonl").write_text('{"id": "b", "prompt": "red1"}\n')
    assert "differs in input (changed, added or removed: " in difference(begun)


def test_each_key_of_the_guard_is_tested(begun: JobSettings) -> None:
    tested = ["fingerprints.model", "input", *CHANGES]
    guard = GenerateJob(begun).prepare().guard
    assert [key for key in guard if not any(f"{name}.".startswith(f"{key}.") for name in tested)] == []
