"""The compared ways to answer a workload, each as a function of a workload."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from benchmarks.engine.workloads import Workload
from pipeline.engine import Engine, Failure, Sampling

Way = Callable[[Workload], None]


def by_engine(engine: Engine) -> Way:
    """Answer with this engine and the requests' mixtures."""

    def run(workload: Workload) -> None:
        for request, answer in engine.generate(workload.requests, Sampling()):
            if isinstance(answer, Failure):
                raise RuntimeError(f"{request.id}: {answer.message}")
            assert request.sampling is not None
            assert answer.completion_tokens == request.sampling.max_new_tokens

    return run


def by_generate(model: Any, rows: int, adapter_names: bool = False) -> Way:
    """Answer with transformers' `generate` over padded batches; each runs to the longest answer in it.

    ``adapter_names``: give each row its own adapter, as PEFT allows.
    """

    def run(workload: Workload) -> None:
        for start in range(0, len(workload.requests), rows):
            batch = workload.requests[start : start + rows]
            longest = max(len(r.tokens) for r in batch)
            gaps = [longest - len(r.tokens) for r in batch]
            ids = torch.stack([pad(torch.tensor(r.tokens), (gap, 0)) for r, gap in zip(batch, gaps, strict=True)])
            mask = torch.stack([pad(torch.ones(longest - gap, dtype=torch.long), (gap, 0)) for gap in gaps])
            ids, mask = ids.to(model.device), mask.to(model.device)
            new = max(workload.new_tokens[start : start + rows])
            named = {"adapter_names": [r.mixture.adapters[0] for r in batch]} if adapter_names else {}
            with torch.inference_mode():
                model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, **named
                )

    return run


def by_continuous_batching(model: Any, rows: int) -> Way:
    """Answer with transformers' continuous batching and the base model, as it supports no mixtures."""
    settings = ContinuousBatchingConfig(max_requests_per_batch=rows, allow_block_sharing=False, max_memory_percent=0.2)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)

    def run(workload: Workload) -> None:
        with model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=settings
        ) as manager:
            for request, new in zip(workload.requests, workload.new_tokens, strict=True):
                manager.add_request(list(request.tokens), request_id=request.id, max_new_tokens=new)
            done = 0
            for result in manager:
                if result.is_finished():
                    assert len(result.generated_tokens) == workload.new_tokens[int(result.request_id)]
                    done += 1
                if done == len(workload.requests):
                    break

    return run


def by_released_code(model: PeftModel) -> Way:
    """Answer like the released DLP-LoRA code: one prompt at a time, no KV cache, all adapters in a Python loop.

    ``model`` has the adapters active, without weights, which would cost nothing more.
    """

    def run(workload: Workload) -> None:
        for request, new in zip(workload.requests, workload.new_tokens, strict=True):
            ids = torch.tensor([list(request.tokens)], device=model.device)
            with torch.inference_mode():
                for _ in range(new):
                    logits = model(input_ids=ids, use_cache=False).logits[:, -1]
                    ids = torch.cat([ids, logits.argmax(1, keepdim=True)], dim=1)

    return run
