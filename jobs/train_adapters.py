"""Train one LoRA adapter for each task of a labelled data set."""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from conf import load_settings
from conf.schema_training import TrainAdaptersConfig
from jobs._cli import OK, Job, config_words, replace_folder, run_job, task_option
from pipeline.adapters import is_adapter_name
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_model, load_tokenizer, pick_device, resolve_model
from pipeline.storage.input.labelled import read_table
from pipeline.storage.store.redact import masked
from pipeline.training import AdapterTrainer, TrainingSettings, encode_examples, split_validation


@click.command("train-adapters", cls=Job)
@click.option("--data", required=True, metavar="URL", help="Labelled examples: columns task, prompt and answer.")
@click.option("--output", required=True, type=Path, metavar="DIR", help="The bank: one folder for each task.")
@task_option
@config_words
def main(data: str, output: Path, tasks: tuple[str, ...], overrides: tuple[str, ...]) -> int:
    """Train one LoRA adapter for each task of a labelled data set.

    \b
    loraloom train-adapters --data train.parquet --output bank [--task TASK ...] [key=value ...]

    The data has the columns task, prompt and answer. A task whose adapter was trained with the same settings is
    skipped, so the same command continues after an interruption. --task may be repeated; default: all tasks.
    """
    config = load_settings("train_adapters", overrides, TrainAdaptersConfig)
    if config.model.quantization != "none":
        raise UserError("config: adapters are trained on unquantised weights; set model.quantization=none")
    rows = rows_by_task(data, tasks, ["task", "prompt", "answer"])
    if config.threads:
        torch.set_num_threads(config.threads)
    settings = TrainingSettings(**config.training.model_dump())
    device = pick_device(config.device)
    folder = resolve_model(config.model.path)
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    model = load_model(folder, config.model.dtype, device, config.model.trust_remote_code)
    trainer = AdapterTrainer(model, settings, pad_token_id=tokenizer.pad_token_id or 0)
    prompts = PromptFormat(tokenizer, config.model.prompt_format)
    todo = [task for task in rows if not _is_done(output / task, config)]
    print(f"{len(rows) - len(todo)} of {len(rows)} adapters are there already", flush=True)
    start = time.monotonic()
    for number, task in enumerate(todo, start=1):
        _train_one(trainer, task, rows[task], prompts, config, output)
        left = (time.monotonic() - start) / number * (len(todo) - number)
        print(f"{task}: done, {number} of {len(todo)}, about {left / 60:.0f} min left", flush=True)
    return OK


def rows_by_task(url: str, wanted: Sequence[str], columns: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of a labelled table by task, in the order of ``wanted``; if that is empty, all tasks by name."""
    rows = defaultdict(list)
    for row in read_table(url, columns):
        rows[row["task"]].append(row)
    for task in rows:
        if not is_adapter_name(task):
            raise UserError(f"data: {masked(url)}: {task!r} cannot be the name of an adapter (column task)")
    unknown = sorted(set(wanted) - set(rows))
    if unknown:
        raise UserError(f"data: {masked(url)} has no task {', '.join(unknown)}; it has {', '.join(sorted(rows))}")
    return {task: rows[task] for task in wanted or sorted(rows)}


def _train_one(
    trainer: AdapterTrainer,
    task: str,
    rows: list[dict[str, Any]],
    prompts: PromptFormat,
    config: TrainAdaptersConfig,
    bank: Path,
) -> None:
    settings = trainer.settings
    examples = encode_examples(rows, prompts, settings.max_tokens)
    if len(examples) < 2:
        raise UserError(
            f"data: task {task!r} has {len(examples)} example(s) of at most {settings.max_tokens} tokens"
            " (training.max_tokens); at least 2 are needed"
        )
    train, validation = split_validation(
        examples, settings.validation_share, settings.validation_examples, settings.seed
    )
    weights, metrics = trainer.train(train, validation, lambda line: print(f"{task}: {line}", flush=True))
    part = bank / f".{task}.part"
    shutil.rmtree(part, ignore_errors=True)
    trainer.save(weights, part)
    metrics |= {"task": task, "examples": len(train), "config": config.model_dump(mode="json")}
    (part / "training.json").write_text(json.dumps(metrics, indent=1) + "\n")
    replace_folder(part, bank / task)


def _is_done(folder: Path, config: TrainAdaptersConfig) -> bool:
    record = folder / "training.json"
    if not record.is_file():
        return False
    before, now = json.loads(record.read_text())["config"], config.model_dump(mode="json")
    return all(before.get(part) == now[part] for part in ("model", "training"))


if __name__ == "__main__":
    run_job(main)
