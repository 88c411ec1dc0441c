"""Label records with a mixture of adapters each. `ray_data_llm_before.py` does the same with `ray.data.llm`."""

import sys

import ray

from pipeline import build_processor

source, target, model = sys.argv[1:4]

config = ["model=custom", f"model.path={model}", *sys.argv[4:]]
processor = build_processor(
    config,
    preprocess=lambda row: dict(
        id=row["id"],
        messages=[{"role": "user", "content": row["question"]}],
        sampling_params=dict(temperature=0.0, max_tokens=16),
    ),
    postprocess=lambda row: dict(id=row["id"], answer=row["output"]),
)

dataset = ray.data.read_json(source)
dataset = processor(dataset)
dataset.write_parquet(target)
