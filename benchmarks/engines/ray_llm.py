"""Run Ray Data LLM (`ray.data.llm`) with one adapter per row, whose folder is in the column `model`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engine import Request


def seconds(model: str, bank: Path, requests: Sequence[Request], arguments: dict[str, Any], threads: int) -> float:
    """Return the seconds of its vLLM stage for the requests, as one batch, without the start of the engine."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    environment = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=arguments,
        batch_size=len(requests),
        concurrency=1,
        chat_template_stage={"enabled": False},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,
    )
    # `build_processor` would connect to any cluster that runs on the machine.
    ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False)
    new = requests[0].sampling.max_new_tokens if requests[0].sampling else 0
    rows = [
        {
            "model": str((bank / r.mixture.adapters[0]).absolute()) if r.mixture.adapters else model,
            "tokenized_prompt": list(r.tokens),
            "sampling_params": {"temperature": 0.0, "max_tokens": new, "min_tokens": new, "detokenize": False},
        }
        for r in requests
    ]
    process = build_processor(config, preprocess=lambda row: row, postprocess=lambda row: row)
    answered = process(ray.data.from_items(rows, override_num_blocks=1)).take_all()
    assert len(answered) == len(requests)
    assert all(row["num_generated_tokens"] == new for row in answered)
    return max(float(row["time_taken_llm"]) for row in answered)
