"""Train the router on labelled prompts."""

from pathlib import Path
from typing import get_args

import click
import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from jobs._cli import OK, Job, config_words, run_job, task_option
from jobs.train_adapters import rows_by_task
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_token_embeddings, load_tokenizer, resolve_model
from pipeline.routing.centroid_router import CentroidSettings, fit_centroids
from pipeline.routing.loading import load_router
from pipeline.routing.mlp_router import MlpRouter
from pipeline.routing.policy import Fallback
from pipeline.routing.router import tokenizer_fingerprint
from pipeline.routing.training import RouterSettings, train_router
from pipeline.storage.output.run import RunFolder


@click.command("train-router", cls=Job)
@click.option(
    "--data", required=True, multiple=True, metavar="URL", help="Prompts: columns task and prompt; may be repeated."
)
@click.option("--output", required=True, type=Path, metavar="DIR", help="Folder of the router.")
@click.option(
    "--method",
    type=click.Choice(["mlp", "centroids"]),
    default="mlp",
    show_default=True,
    help="A trained network, or centroids of 8 to 64 examples an adapter, in seconds.",
)
@click.option(
    "--fallback",
    type=click.Choice(get_args(Fallback)),
    default="base",
    show_default=True,
    help="What answers a prompt that the gate rejects, unless a job says otherwise (routing.fallback).",
)
@task_option
@config_words
def main(
    data: tuple[str, ...],
    output: Path,
    method: str,
    fallback: Fallback,
    tasks: tuple[str, ...],
    overrides: tuple[str, ...],
) -> int:
    """Train the router on labelled prompts.

    \b
    loraloom train-router --data train.parquet --output router [--method centroids] [--fallback nearest]
      [--task TASK ...] [key=value ...]

    The data has the columns task and prompt; a task is the name of the adapter that answers it. --task may be
    repeated; default: all tasks of the data. loraloom evaluate --leave-one-out measures which fallback is best.
    """
    config = load_settings("train_router", overrides, TrainRouterConfig)
    _check_output(output)
    rows = rows_by_task(data, tasks, ["task", "prompt"])
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = resolve_model(config.model.path)
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    labels = [task for task, examples in rows.items() for _ in examples]
    texts = [row["prompt"] for examples in rows.values() for row in examples]
    encode = PromptFormat(tokenizer, config.model.prompts).encode
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    card = {
        "tokenizer_fingerprint": tokenizer_fingerprint(vocabulary),
        "prompt_format": config.model.prompt_format,
        "fallback": fallback,
    }
    router: MlpRouter
    if method == "centroids":
        embeddings = load_token_embeddings(folder, config.model.trust_remote_code)[:size]
        router = fit_centroids(
            texts, labels, encode, embeddings, CentroidSettings(**config.centroids.model_dump()), card
        )
    else:
        router = train_router(texts, labels, encode, size, RouterSettings(**config.training.model_dump()), card, print)
    router.save(output)
    metrics = router.card["metrics"]
    print(
        f"{len(router.labels)} adapters, {metrics['parameters']:,} parameters, {metrics['seconds']} s;"
        f" accuracy {metrics['held_out_accuracy']:.4f} on {metrics['held_out_prompts']} held-out prompts,"
        f" {metrics['held_out_forms_accuracy']:.4f} on these in other forms"
        f" -> {output}"
    )
    return OK


def _check_output(folder: Path) -> None:
    """Raise `UserError` if the folder cannot be written, or holds what no router wrote."""
    RunFolder(str(folder)).check_writable()
    if (folder / "router.json").exists():
        try:
            load_router(folder)
        except UserError:
            raise UserError(f"output: {folder} holds another router.json; give another --output") from None


if __name__ == "__main__":
    run_job(main)
