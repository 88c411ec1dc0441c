"""Which engine `engine=auto` takes, and why: by the keys of the config, then by the machine and the job."""

import pytest

from pipeline.engine import registry
from pipeline.engine.choice import Choice, choose, engine_of_keys
from pipeline.errors import UserError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name)


def never(*args: object) -> float:
    raise AssertionError("nothing is counted or loaded to know this")


def test_without_its_package_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert choose(never, str) == Choice("native", "the package vllm is not installed")


@pytest.mark.usefixtures("installed")
def test_without_a_gpu_no_model_is_looked_at() -> None:
    assert choose(lambda: 0, lambda name: str(never())) == Choice("native", "there is no GPU for it")


@pytest.mark.usefixtures("installed")
def test_what_the_engine_refuses_is_the_reason() -> None:
    assert choose(lambda: 1, lambda name: f"{name} has no model Xyz") == Choice("native", "vllm has no model Xyz")


@pytest.mark.usefixtures("installed")
def test_an_engine_that_takes_the_job_is_taken() -> None:
    assert choose(lambda: 0.5, lambda name: "").name == "vllm"


@pytest.mark.parametrize(
    ("keys", "engine"),
    [
        ([], None),
        (["batch_size", "prefill_tokens", "reuse_prefixes", "actors", "threads", "hang_seconds", "seed"], None),
        (["no_such_key"], None),
        (["batch_size", "lora.mode"], "native"),
        (["kv_tokens", "look_ahead", "cuda_graphs"], "native"),
        (["kv_gb", "adapter_slots", "enforce_eager"], "vllm"),
        (["kv_token"], "native"),
        (["adapter_slot"], "vllm"),
    ],
)
def test_a_key_of_one_engine_chooses_it(keys: list[str], engine: str | None) -> None:
    choice = engine_of_keys(keys)
    assert (choice and choice.name) == engine


def test_the_key_is_the_reason() -> None:
    assert str(engine_of_keys(["batch_size", "lora.mode"])) == "engine     native: engine.lora.mode is a setting of it"


def test_keys_of_two_engines_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        engine_of_keys(["lora.mode", "kv_gb", "kv_tokens"])
    assert str(caught.value) == (
        "config: engine.lora.mode is a setting of engine=native and engine.kv_gb is a setting of engine=vllm;"
        " give the settings of one engine"
    )
