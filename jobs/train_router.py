"""Train the router on labelled prompts."""

from pathlib import Path

import click
import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from jobs._cli import OK, Job, config_words, run_job, task_option
from jobs.train_adapters import rows_by_task
from pipeline.models import PromptFormat, load_tokenizer, resolve_model
from pipeline.routing.router import tokenizer_fingerprint
from pipeline.routing.training import RouterSettings, train_router


@click.command("train-router", cls=Job)
@click.option(
    "--data", required=True, multiple=True, metavar="URL", help="Prompts: columns task and prompt; may be repeated."
)
@click.option("--output", required=True, type=Path, metavar="DIR", help="Folder of the router.")
@task_option
@config_words
def main(data: tuple[str, ...], output: Path, tasks: tuple[str, ...], overrides: tuple[str, ...]) -> int:
    """Train the router on labelled prompts.

    \b
    loraloom train-router --data train.parquet --output router [--task TASK ...] [key=value ...]

    The data has the columns task and prompt; a task is the name of the adapter that answers it. --task may be
    repeated; default: all tasks of the data.
    """
    config = load_settings("train_router", overrides, TrainRouterConfig)
    rows = rows_by_task(data, tasks, ["task", "prompt"])
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(resolve_model(config.model.path), config.model.trust_remote_code)
    labels = [task for task, examples in rows.items() for _ in examples]
    texts = [row["prompt"] for examples in rows.values() for row in examples]
    prompts = PromptFormat(tokenizer, config.model.prompt_format).encode(texts)
    vocabulary = tokenizer.get_vocab()
    card = {
        "tokenizer_fingerprint": tokenizer_fingerprint(vocabulary),
        "prompt_format": config.model.prompt_format,
    }
    settings = RouterSettings(**config.training.model_dump())
    router = train_router(prompts, labels, max(vocabulary.values()) + 1, settings, card, print)
    router.save(output)
    metrics = router.card["metrics"]
    print(
        f"{len(router.labels)} adapters, {metrics['parameters']:,} parameters, {metrics['seconds']} s;"
        f" held-out accuracy {metrics['held_out_accuracy']:.4f} on {metrics['held_out_prompts']} prompts"
        f" -> {output}"
    )
    return OK


if __name__ == "__main__":
    run_job(main)
