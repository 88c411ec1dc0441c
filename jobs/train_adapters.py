"""Train one LoRA adapter for each task of a labelled data set."""

import hashlib
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
from pipeline.storage.input.labelled import read_examples
from pipeline.storage.output.run import RunFolder
from pipeline.storage.store.redact import masked
from pipeline.training import AdapterTrainer, TrainingSettings, encode_examples, split_validation


@click.command("train-adapters", cls=Job)
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="URL",
    help="Examples: columns task, prompt, answer; may be repeated.",
)
@click.option("--output", required=True, type=Path, metavar="DIR", help="The bank: one folder for each task.")
@task_option
@config_words
def main(data: tuple[str, ...], output: Path, tasks: tuple[str, ...], overrides: tuple[str, ...]) -> int:
    """Train one LoRA adapter for each task of a labelled data set.

    \b
    loraloom train-adapters --data train.parquet --output bank [--task TASK ...] [key=value ...]

    The data has the columns task, prompt and answer; rows without a value in one of them are left out. A task whose
    adapter was trained on the same examples with the same settings is skipped, so the same command continues after an
    interruption. --task may be repeated; default: all tasks.
    """
    config = load_settings("train_adapters", overrides, TrainAdaptersConfig)
    if config.model.quantization != "none":
        raise UserError("config: adapters are trained on unquantised weights; set model.quantization=none")
    RunFolder(str(output)).check_writable()
    rows = rows_by_task(data, tasks, ["task", "prompt", "answer"])
    for task in rows:
        if (output / task).exists() and not (output / task / "training.json").is_file():
            raise UserError(f"train: {output / task} was not trained by this command; give another --output")
    if config.threads:
        torch.set_num_threads(config.threads)
    settings = TrainingSettings(**config.training.model_dump())
    device = pick_device(config.device)
    folder = resolve_model(config.model.path)
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    model = load_model(folder, config.model.dtype, device, config.model.trust_remote_code)
    trainer = AdapterTrainer(model, settings, pad_token_id=tokenizer.pad_token_id or 0)
    prompts = PromptFormat(tokenizer, config.model.prompts)
    todo = [task for task in rows if not _is_done(output / task, config, rows[task])]
    print(f"{len(rows) - len(todo)} of {len(rows)} adapters are there already", flush=True)
    start = time.monotonic()
    for number, task in enumerate(todo, start=1):
        _train_one(trainer, task, rows[task], prompts, config, output)
        left = (time.monotonic() - start) / number * (len(todo) - number)
        print(f"{task}: done, {number} of {len(todo)}, about {left / 60:.0f} min left", flush=True)
    return OK


def rows_by_task(urls: Sequence[str], wanted: Sequence[str], columns: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of labelled tables by task, in the order of ``wanted``; if that is empty, all tasks by name.

    `prompt` is a text or a `Conversation`. Rows without a value in one of ``columns`` are left out, and counted.
    """
    shown, rows, empty = ", ".join(map(masked, urls)), defaultdict(list), 0
    others = [column for column in columns if column != "prompt"]
    for row in (row for url in urls for row in read_examples(url, others)):
        if any(row[column] is None for column in columns):
            empty += 1
        else:
            rows[row["task"]].append(row)
    if empty:
        print(f"{empty} rows without a value in {', '.join(columns)} are left out", flush=True)
    for task in rows:
        if not is_adapter_name(task):
            raise UserError(f"data: {shown}: {task!r} cannot be the name of an adapter (column task)")
    unknown = sorted(set(wanted) - set(rows))
    if unknown or not rows:
        missing = f"no task {', '.join(unknown)}" if unknown else "no row"
        raise UserError(f"data: {shown} has {missing}; it has {', '.join(sorted(rows)) or 'nothing else'}")
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
    metrics |= {"task": task, "examples": len(train), "config": config.model_dump(mode="json"), "data": _hash(rows)}
    (part / "training.json").write_text(json.dumps(metrics, indent=1) + "\n")
    replace_folder(part, bank / task)


def _is_done(folder: Path, config: TrainAdaptersConfig, rows: Sequence[dict[str, Any]]) -> bool:
    record = folder / "training.json"
    if not record.is_file():
        return False
    values, now = json.loads(record.read_text()), config.model_dump(mode="json")
    return values.get("data") == _hash(rows) and all(
        values["config"].get(part) == now[part] for part in ("model", "training")
    )


def _hash(rows: Sequence[dict[str, Any]]) -> str:
    """Hash of what an adapter learns from, in its order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row["prompt"], row["answer"])).encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    run_job(main)
