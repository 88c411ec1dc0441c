"""The installed vLLM says which models it has; with a GPU, `engine=auto` takes it for the demo's."""

from types import SimpleNamespace

import pytest

from conf.generate import load_config
from pipeline.auto_engine import choose_engine
from pipeline.engine.vllm.support import model_problem


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        ("Qwen3ForCausalLM", ""),
        ("GPT2LMHeadModel", "vLLM takes no adapters for GPT2LMHeadModel"),
        ("NoSuchForCausalLM", "vLLM has no model NoSuchForCausalLM"),
    ],
)
def test_vllm_says_whether_it_has_a_model(architecture: str, problem: str) -> None:
    assert model_problem(SimpleNamespace(architectures=[architecture])) == problem


def test_a_plugin_that_vllm_may_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert "vLLM does not load the plugin" in model_problem(SimpleNamespace(architectures=["Qwen3ForCausalLM"]))


def test_the_demo_would_run_on_vllm() -> None:
    words = ["generation.max_new_tokens=8"]
    chosen = choose_engine(words, load_config(words), gpus=1)
    assert (chosen.choice.name, chosen.config.engine.backend) == ("vllm", "vllm")
    assert choose_engine(words, load_config(words), gpus=0).choice.reason == "there is no GPU for it"
