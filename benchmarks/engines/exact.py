"""Measure the exactness of mixtures in vLLM against merged weights and against the native engine.

The functions come from `tests/vllm/test_exact.py`. In bf16 there are two questions: how far the log probabilities of
generated tokens are from exact ones (weights merged in fp32, computed by transformers in fp32), and whether mixing adds
to the error of bf16 itself. For the second, vLLM also computes the same tokens from merged weights that were rounded to
bf16 once; with its head in bf16, the default, and in fp32.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from unittest import mock

import torch

from pipeline.adapters import AdapterBank
from pipeline.engine.core.limits import context_length
from pipeline.engine.vllm import backend as module
from pipeline.engine.vllm.engine import VllmModel, engine_arguments, prepare_environment
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.models import load_config, load_model, load_tokenizer
from tests.engine.reference import merged
from tests.vllm.engines import DEFAULTS, DEMO_BANK, THREADS, Engines, mixtures_of, smollm, start, start_vllm
from tests.vllm.measures import Scored, agreement, off_merged, scored

_RECORDS = 40
_FP32_RECORDS = 10  # whose five most likely tokens are compared at each step
_HEADS: dict[str, dict[str, Any]] = {"bf16": {}, "fp32": {"head_dtype": "float32"}}  # vLLM's `hf_overrides`
REQUESTS = {
    "records": _RECORDS,
    "new_tokens": DEFAULTS.max_new_tokens,
    "mixtures": "the base, and one to four adapters, in turn",
}


def figures() -> dict[str, Any]:
    """Return all figures, for SmolLM2-135M and the demo's bank on a CPU."""
    found = {"fp32": _fp32(), "bf16": _agreement("bf16")}
    for head, overrides in _HEADS.items():
        found[f"bf16, head in {head}"] = _bf16(overrides)
    return found


def _fp32() -> dict[str, Any]:
    with _engines("fp32") as both:
        requests = both.requests(mixtures_of(both.bank), _FP32_RECORDS, logprobs=5)
        worst = off_merged(load_model(smollm(), "fp32"), both.bank, both.vllm, requests)
        return {"largest_off_merged": worst, "records_compared": len(requests)} | _compared(both)


def _agreement(dtype: str) -> dict[str, Any]:
    with _engines(dtype) as both:
        return _compared(both)


def _compared(both: Engines) -> dict[str, Any]:
    requests = both.requests(mixtures_of(both.bank), _RECORDS, logprobs=2)
    equal, margins = agreement(both, requests)
    return {"equal_answers": equal, "answers": len(requests), "margins_of_others": margins}


def _bf16(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return differences of log probabilities, for the base model and for all mixtures together.

    ``vllm``: a mixture as an adapter; the base model as an adapter of zeros among the others. ``vllm_merged`` and
    ``transformers``: weights that were merged in fp32 and rounded once. ``transformers_bf16``: weights merged in bf16.
    """
    answers, bank = _answers(overrides)
    exact, half = load_model(smollm(), "fp32"), load_model(smollm(), "bf16")
    differences: dict[bool, dict[str, list[torch.Tensor]]] = {False: {}, True: {}}
    # Python's sort is stable.
    for mixture, group in groupby(sorted(answers, key=_key), lambda one: one.request.mixture):
        own = list(group)
        whole = merged(exact, bank, mixture)
        expected = _together(own, whole)
        in_bf16 = _together(own, merged(half, bank, mixture))
        rounded = _rounded(whole)
        by = {
            "vllm": torch.cat([one.logprobs for one in own]),
            "vllm_merged": _through_vllm(own, rounded, overrides),
            "transformers": _together(own, rounded),
            "transformers_bf16": in_bf16,
        }
        off = {f"{name}_off_exact": found - expected for name, found in by.items()}
        off["vllm_off_vllm_merged"] = by["vllm"] - by["vllm_merged"]
        print(f"{mixture.key}: " + ", ".join(f"{k} {v.abs().mean():.4f}" for k, v in off.items()), flush=True)
        for name, values in off.items():
            differences[bool(mixture.adapters)].setdefault(name, []).append(values)
    return {
        "mixtures" if mixed else "base": {name: _spread(torch.cat(parts)) for name, parts in found.items()}
        for mixed, found in differences.items()
    }


def _answers(overrides: dict[str, Any]) -> tuple[list[Scored], AdapterBank]:
    def arguments(*given: Any) -> dict[str, Any]:
        return engine_arguments(*given) | {"hf_overrides": overrides}

    with mock.patch.object(module, "engine_arguments", arguments):
        bank = AdapterBank.load(DEMO_BANK)
        vllm = start_vllm("bf16")
        asker = Engines(None, vllm, bank, load_tokenizer(smollm()))  # type: ignore[arg-type]
        answers = scored(vllm, asker.requests(mixtures_of(bank), _RECORDS, logprobs=0))
        vllm.close()
    return answers, bank


def _through_vllm(answers: Sequence[Scored], model: Any, overrides: dict[str, Any]) -> torch.Tensor:
    """Compute log probabilities of the answers' tokens with vLLM, from a transformers model without adapters."""
    from vllm import LLM, SamplingParams

    prepare_environment("cpu", THREADS)
    settings = VllmSettings(batch_size=32, prefill_tokens=2048, kv_gb=1)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        reference = VllmModel(folder, torch.bfloat16, False, context_length(load_config(smollm())))
        arguments = engine_arguments(reference, settings, "cpu", None)
        llm = LLM(**arguments, skip_tokenizer_init=True, hf_overrides=overrides)
        prompts = [{"prompt_token_ids": one.all_tokens} for one in answers]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.llm_engine.engine_core.shutdown()
    found = []
    for one, output in zip(answers, outputs, strict=True):
        for index in range(len(one.request.tokens), len(one.all_tokens)):
            found.append(output.prompt_logprobs[index][one.all_tokens[index]].logprob)
    return torch.tensor(found)


def _rounded(model: Any) -> Any:
    """Round a model's weights to bf16 in place; its other tensors, such as rotary frequencies, stay in fp32."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model


def _together(answers: Sequence[Scored], model: Any) -> torch.Tensor:
    return torch.cat([one.of_tokens(model) for one in answers])


def _spread(differences: torch.Tensor) -> dict[str, Any]:
    sizes = differences.abs()
    return {
        "mean": float(sizes.mean()),
        "median": float(sizes.median()),
        "largest": float(sizes.max()),
        "bias": float(differences.mean()),
        "tokens": len(sizes),
    }


@contextmanager
def _engines(dtype: str) -> Iterator[Engines]:
    both = start(dtype)
    try:
        yield both
    finally:
        both.close()


def _key(one: Scored) -> str:
    return one.request.mixture.key
