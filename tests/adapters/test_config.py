import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from pipeline.adapters.config import AdapterConfig, read_adapter_config
from tests.adapters.make import PLAIN, Q, V
from tests.storage import user_error

MODULES = [Q, V, "model.layers.10.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"]


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    return folder


def read(folder: Path, **changes: Any) -> AdapterConfig:
    return read_adapter_config(write_config(folder / "legal", **changes))


def test_the_scale_is_alpha_over_rank(tmp_path: Path) -> None:
    config = read(tmp_path, r=4, lora_alpha=6)
    assert (config.rank(Q), config.scale(Q)) == (4, 1.5)


def test_the_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank(tmp_path: Path) -> None:
    config = read(tmp_path, r=4, lora_alpha=6, use_rslora=True, rank_pattern={"v_proj": 9})
    assert (config.scale(Q), config.scale(V)) == (3.0, 2.0)


def test_patterns_overrule_rank_and_alpha_of_the_modules_they_match(tmp_path: Path) -> None:
    config = read(tmp_path, r=4, lora_alpha=8, rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.0\..*q_proj": 16})
    assert (config.rank(Q), config.rank(V)) == (4, 2)
    assert (config.scale(Q), config.scale(V)) == (4.0, 4.0)


@given(
    st.lists(
        st.sampled_from(["q_proj", "proj", ".*q_proj", r"layers\.1", r"layers.1.*", "v_proj|q_proj", "lm_head", ".*"]),
        unique=True,
    )
)
def test_patterns_match_as_in_peft(patterns: list[str]) -> None:
    ranks = {pattern: 100 + number for number, pattern in enumerate(patterns)}
    config = AdapterConfig(4, 8.0, False, ranks, {})
    for module in MODULES:
        assert config.rank(module) == ranks.get(get_pattern_key(patterns, module), 4)


REFUSED = {
    "layer_replication": [[0, 4], [2, 5]],
    "bias": "boft_only",
    "target_parameters": ["mlp.experts"],
    "trainable_token_indices": [1, 2],
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "megatron_config": {"a": 1},
    "a_key_of_a_later_peft": 1,
}


@pytest.mark.parametrize(("key", "value"), REFUSED.items(), ids=REFUSED)
def test_what_changes_the_maths_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with user_error("'legal'", key if isinstance(value, dict) else f"{key}={value!r}", str(tmp_path / "legal")):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "x", ["x"]])
def test_an_initialisation_that_changes_the_base_model_is_refused(tmp_path: Path, value: object) -> None:
    with user_error("'legal'", f"init_lora_weights={value!r}"):
        read(tmp_path, init_lora_weights=value)


@pytest.mark.parametrize(
    ("value", "said"), [("IA3", "peft_type='IA3'"), (["x"], "peft_type=['x']"), (None, "no peft_type")]
)
def test_other_methods_than_lora_are_refused(tmp_path: Path, value: object, said: str) -> None:
    with user_error("'legal'", said):
        read(tmp_path, peft_type=value)


def test_all_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    with user_error("use_dora", "lora_bias", "init_lora_weights"):
        read(tmp_path, use_dora=True, lora_bias=True, init_lora_weights="olora")


def test_dora_and_the_bias_of_lora_b_are_read(tmp_path: Path) -> None:
    assert [(c.dora, c.bias) for c in (read(tmp_path, use_dora=True), read(tmp_path, lora_bias=True))] == [
        (True, False),
        (False, True),
    ]


HARMLESS = {
    "lora_dropout": 0.1,
    "target_modules": "all-linear",
    "layers_to_transform": [0, 1],
    "fan_in_fan_out": True,
    "task_type": "SEQ_2_SEQ_LM",
    "revision": "main",
    "peft_version": "0.30.0",
    "loftq_config": {},
    "init_lora_weights": "Gaussian",
    "peft_type": "lora",
    "bias": "lora_only",
    "modules_to_save": ["lm_head"],
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
}


@pytest.mark.parametrize(("key", "value"), HARMLESS.items(), ids=HARMLESS)
def test_what_leaves_the_maths_as_it_is_is_accepted(tmp_path: Path, key: str, value: object) -> None:
    assert read(tmp_path, **{key: value}) == read(tmp_path)


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_is_not_set_is_accepted(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, **{key: None}) == read(tmp_path)


BROKEN = {
    "no rank": {"r": None},
    "text for a rank": {"r": "many"},
    "rank 0": {"r": 0},
    "rank 0 of a pattern": {"rank_pattern": {"q_proj": 0}},
    "a list of patterns": {"rank_pattern": ["q_proj"]},
    "a bad pattern": {"alpha_pattern": {"q_(proj": 1}},
    "a bad pattern that is good alone": {"rank_pattern": {"(?i)q_proj": 1}},
    "no alpha": {"lora_alpha": None},
    "alpha NaN": {"lora_alpha": math.nan},
    "infinite alpha of a pattern": {"alpha_pattern": {"q_proj": math.inf}},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_a_config_with_broken_values_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with user_error("'legal'", "adapter_config.json", str(tmp_path / "legal")):
        read(tmp_path, **changes)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"r": "\xff"}'])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "legal"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(content)
    with user_error("'legal'", "adapter_config.json", str(folder)):
        read_adapter_config(folder)
