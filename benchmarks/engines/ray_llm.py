"""Ray Data LLM (`ray.data.llm`) with one adapter for each row: the column `model` names its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engine import Request


def seconds(model: str, bank: Path, asked: Sequence[Request], arguments: dict[str, Any], threads: int) -> float:
    """Seconds that its vLLM stage takes over the requests, as one batch; the start of its engine is not in it."""
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
        batch_size=len(asked),
        concurrency=1,
        chat_template_stage={"enabled": False},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
        placement_group_config={"bundles": [{"CPU": 1}]},
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,
    )
    # `build_processor` connects to whatever cluster it finds on the machine, which may be somebody else's.
    ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False)
    new = asked[0].sampling.max_new_tokens if asked[0].sampling else 0
    rows = [
        {
            "model": str((bank / r.mixture.adapters[0]).absolute()) if r.mixture.adapters else model,
            "tokenized_prompt": list(r.tokens),
            "sampling_params": {"temperature": 0.0, "max_tokens": new, "min_tokens": new, "detokenize": False},
        }
        for r in asked
    ]
    process = build_processor(config, preprocess=lambda row: row, postprocess=lambda row: row)
    answered = process(ray.data.from_items(rows, override_num_blocks=1)).take_all()
    assert len(answered) == len(asked)
    assert all(row["num_generated_tokens"] == new for row in answered)
    return max(float(row["time_taken_llm"]) for row in answered)
