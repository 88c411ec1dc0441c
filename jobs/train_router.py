"""Train the router on labelled prompts.

    python -m jobs.train_router --data train.parquet --output router [--tasks a b ...] [key=value ...]

The data has the columns `task, prompt`; a task is the name of the adapter that answers it.
"""

import argparse
from pathlib import Path

import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from jobs._cli import OK, run_job, split_tasks
from jobs.train_adapters import rows_by_task
from pipeline.models import PromptFormat, load_tokenizer, resolve_model
from pipeline.routing import RouterSettings, train_router
from pipeline.routing.router import tokenizer_fingerprint


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.train_router", description="Train the router on labelled prompts.")
    parser.add_argument("--data", required=True, help="labelled prompts: task, prompt")
    parser.add_argument("--output", required=True, type=Path, help="folder for router.safetensors and router.json")
    parser.add_argument("--tasks", nargs="*", help="tasks to train on (default: all of the data)")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")
    args = split_tasks(parser.parse_intermixed_args(argv))
    config = load_settings("train_router", args.overrides, TrainRouterConfig)
    tasks = rows_by_task(args.data, args.tasks, ["task", "prompt"])
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(resolve_model(config.model.path), config.model.trust_remote_code)
    labels = [task for task, rows in tasks.items() for _ in rows]
    texts = [row["prompt"] for rows in tasks.values() for row in rows]
    prompts = PromptFormat(tokenizer, config.model.prompt_format).encode(texts)
    vocabulary = tokenizer.get_vocab()
    card = {
        "tokenizer_fingerprint": tokenizer_fingerprint(vocabulary),
        "prompt_format": config.model.prompt_format,
    }
    settings = RouterSettings(**config.training.model_dump())
    router = train_router(prompts, labels, max(vocabulary.values()) + 1, settings, card, print)
    router.save(args.output)
    metrics = router.card["metrics"]
    print(
        f"{len(router.labels)} adapters, {metrics['parameters']:,} parameters, {metrics['seconds']} s;"
        f" held-out accuracy {metrics['held_out_accuracy']:.4f} on {metrics['held_out_prompts']} prompts"
        f" -> {args.output}"
    )
    return OK


if __name__ == "__main__":
    run_job(main)
