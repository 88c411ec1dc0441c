"""Model, bank and router of a run that another command would finish: each is compared by what it holds."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.conversations import PromptSettings
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from pipeline.job.session import open_session
from pipeline.settings import JobSettings
from pipeline.storage.commit.lease import Lease
from pipeline.storage.output.run import RUN
from pipeline.telemetry.progress import JobProgress
from tests import tiny
from tests.stages import tiny_job


@pytest.fixture
def begun(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    """A job on copies of its parts, whose output holds a run that has just begun."""
    copies = [Path(shutil.copytree(part, tmp_path / part.name)) for part in (tiny_model, tiny_bank, tiny_router)]
    settings = tiny_job(tmp_path, *copies)
    Path(settings.input).mkdir()
    (Path(settings.input) / "a.jsonl").write_text('{"id": "a", "prompt": "red1"}\n')
    job = GenerateJob(settings)
    job.folder.write_json(RUN, {"guard": job.prepare().guard, "schemas": {}})
    return settings


def change_a_weight(path: Path) -> None:
    """The same shapes and names, one number is another one."""
    tensors = load_file(path)
    name = min(tensors)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, {"format": "pt"})


def refusal(settings: JobSettings) -> str:
    with pytest.raises(UserError) as caught:
        GenerateJob(settings).prepare()
    return str(caught.value)


def test_the_same_parts_elsewhere_are_the_same(begun: JobSettings, tmp_path: Path) -> None:
    moved = replace(begun, bank=str(shutil.copytree(begun.bank, tmp_path / "moved")))
    GenerateJob(moved).prepare()


def test_the_fallback_of_the_router_is_that_of_the_job(begun: JobSettings) -> None:
    assert begun.routing.fallback is None
    GenerateJob(replace(begun, routing=replace(begun.routing, fallback="base"))).prepare()  # the router has the same
    assert "routing.fallback" in refusal(replace(begun, routing=replace(begun.routing, fallback="all")))
    job = GenerateJob(begun)
    job.prepare()
    assert (job.settings.routing.fallback, job.settings.config["routing"]) == ("base", {"fallback": "base"})


def test_a_model_of_other_weights_is_refused(begun: JobSettings) -> None:
    change_a_weight(Path(begun.model.path) / "model.safetensors")
    assert "differs in fingerprints.model (was '" in refusal(begun)


def test_an_adapter_of_other_weights_is_refused(begun: JobSettings) -> None:
    change_a_weight(Path(begun.bank) / "tall" / "adapter_model.safetensors")
    said = refusal(begun)
    assert "bank" in said
    assert "tall" in said or "fingerprints.bank (was '" in said


def test_a_run_that_another_command_begins_after_the_checks_is_refused(begun: JobSettings) -> None:
    job = GenerateJob(begun)
    prepared = job.prepare()
    other = {**prepared.guard, "fingerprints": {**prepared.guard["fingerprints"], "bank": "another"}}
    job.folder.write_json(RUN, {"guard": other, "schemas": {}})
    with (
        pytest.raises(UserError, match=r"differs in fingerprints\.bank"),
        open_session(begun, prepared, job.folder, JobProgress(), lambda line: None),
    ):
        raise AssertionError("the session began")
    with Lease(begun.output, lambda: None):
        pass  # it was given back


@pytest.mark.long
def test_a_router_that_was_trained_otherwise_is_refused(begun: JobSettings, tmp_path: Path) -> None:
    other = tiny.make_router(tmp_path / "other", Path(begun.model.path), prompt_format="chat")
    raw = replace(begun, model=replace(begun.model, prompts=PromptSettings("chat")), router=str(other))
    said = refusal(raw)
    assert "fingerprints.router (was '" in said
    assert "prompt_format (was 'raw', is 'chat')" in said
