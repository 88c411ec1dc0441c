"""Label records with `ray.data.llm` and one model. `ray_data_llm.py` does the same with a mixture per record."""

import sys

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

source, target, model = sys.argv[1:4]

config = vLLMEngineProcessorConfig(model_source=model, batch_size=64, concurrency=1)
processor = build_processor(
    config,
    preprocess=lambda row: dict(
        id=row["id"],
        messages=[{"role": "user", "content": row["question"]}],
        sampling_params=dict(temperature=0.0, max_tokens=16),
    ),
    postprocess=lambda row: dict(id=row["id"], answer=row["generated_text"]),
)

dataset = ray.data.read_json(source)
dataset = processor(dataset)
dataset.write_parquet(target)
