"""Add an adapter to a bank and its router from 8 to 64 example prompts, without retraining."""

import shutil
from pathlib import Path

import click

from conf import load_settings
from conf.schema_training import AddAdapterConfig
from jobs._cli import OK, Job, config_words, replace_folder, run_job
from pipeline.adapters import AdapterBank, adapter_files, is_adapter_name, is_checkpoint
from pipeline.engine import load_bank
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_config, load_tokenizer, resolve_model
from pipeline.routing.extension import Extension, add_class
from pipeline.routing.loading import load_router_for
from pipeline.storage.input.labelled import read_examples
from pipeline.storage.store.redact import masked


@click.command("add-adapter", cls=Job)
@click.option("--bank", required=True, type=Path, metavar="DIR", help="The bank that gets the adapter.")
@click.option("--router", required=True, type=Path, metavar="DIR", help="The router that gets a class for it.")
@click.option("--adapter", required=True, type=Path, metavar="DIR", help="The adapter, a PEFT folder.")
@click.option("--examples", required=True, metavar="URL", help="8 to 64 prompts for the adapter (column prompt).")
@click.option("--name", "given_name", metavar="NAME", help="Name of the adapter; default: the name of its folder.")
@config_words
def main(
    bank: Path, router: Path, adapter: Path, examples: str, given_name: str | None, overrides: tuple[str, ...]
) -> int:
    """Add an adapter to a bank and its router from 8 to 64 example prompts, without retraining.

    \b
    loraloom add-adapter --bank DIR --router DIR --adapter DIR --examples FILE [--name NAME] [key=value ...]

    Checks the adapter (a PEFT folder) against the base model and copies it into the bank; the router gets a class from
    the mean of the examples (column prompt). Measures and prints how the other classes change. Bank and router are
    changed in place, the router as a whole or not at all.
    """
    config = load_settings("add_adapter", overrides, AddAdapterConfig)
    name = given_name or adapter.resolve().name
    if not is_adapter_name(name):
        raise UserError(f"bank: {name!r} cannot be the name of an adapter (--name)")
    if given_name is None and is_checkpoint(name):
        raise UserError(f"bank: {adapter} is a checkpoint of a training; give the adapter a name (--name)")
    folder = resolve_model(config.model.path)
    checked = _checked_bank(bank, adapter, name, folder, config)
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    vocabulary, prompt_format = tokenizer.get_vocab(), config.model.prompt_format
    loaded = load_router_for(router, checked.names, str(bank), vocabulary, prompt_format)
    given = [row["prompt"] for row in read_examples(examples, [])]
    if None in given:
        raise UserError(f"data: {masked(examples)}: the column prompt must hold a text or messages in each row")
    prompts = PromptFormat(tokenizer, config.model.prompts).encode(given)
    extended, found = add_class(loaded, name, prompts, config.false_claim)
    # The bank first: an adapter that no router names does no harm, a router that names a missing one stops a job.
    _copy(adapter, bank / name)
    part = router.parent / f".{router.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    extended.save(part)
    replace_folder(part, router)
    print(_summary(name, len(prompts), found, router))
    return OK


def _checked_bank(bank: Path, adapter: Path, name: str, model: str, config: AddAdapterConfig) -> AdapterBank:
    """Load the bank; `UserError` if the adapter does not fit the base model or its name is taken."""
    source, trusted = adapter.resolve(), config.model.trust_remote_code
    load_bank(source.parent, [source.name], load_config(model, trusted), model, trusted)
    target = bank / name
    if target.exists() and any(
        not (target / file.name).is_file() or (target / file.name).read_bytes() != file.read_bytes()
        for file in adapter_files(source)
    ):
        raise UserError(f"bank: {bank} has another adapter {name!r} already; give a --name")
    return AdapterBank.load(bank)


def _copy(adapter: Path, target: Path) -> None:
    if target.exists():
        return
    part = target.parent / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for file in adapter_files(adapter.resolve()):
        shutil.copyfile(file, part / file.name)
    replace_folder(part, target)


def _summary(name: str, examples: int, found: Extension, router: Path) -> str:
    return (
        f"{name}: added from {examples} examples -> {router}\n"
        f"  examples that get it, each left out in turn  {found.recall:7.1%}\n"
        f"  held-out prompts of other classes it takes   {found.taken:7.1%}\n"
        f"  accuracy on these, before and after          {found.accuracy_before:7.1%} {found.accuracy_after:7.1%}\n"
        f"  examples that pass the gate                  {found.accepted:7.1%}"
    )


if __name__ == "__main__":
    run_job(main)
