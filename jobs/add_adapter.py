"""Add an adapter to a bank and its router without retraining, from 8 to 64 example prompts.

    python -m jobs.add_adapter --bank DIR --router DIR --adapter DIR --examples FILE [--name NAME] [key=value ...]

The adapter (a PEFT folder) is checked against the base model and copied into the bank; the router gets a class from
the mean of the examples (column `prompt`). What that does to the other classes is measured and printed. Bank and router
are changed in place, the router as a whole or not at all.
"""

import argparse
import shutil
from pathlib import Path

from conf import load_settings
from conf.schema_training import AddAdapterConfig
from jobs._cli import OK, run_job, swap_folder
from pipeline.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterBank, is_adapter_name
from pipeline.engine import load_bank
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_config, load_tokenizer, resolve_model
from pipeline.routing import Extension, Router, add_class
from pipeline.storage.input.labelled import read_table


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    args = _parse(argv)
    config = load_settings("add_adapter", args.overrides, AddAdapterConfig)
    name = args.name or args.adapter.resolve().name
    if not is_adapter_name(name):
        raise UserError(f"bank: {name!r} cannot be the name of an adapter (--name)")
    folder = resolve_model(config.model.path)
    bank = _checked_bank(args.bank, args.adapter, name, folder, config)
    tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    vocabulary, prompt_format = tokenizer.get_vocab(), config.model.prompt_format
    router = Router.load_for(args.router, bank.names, str(args.bank), vocabulary, prompt_format)
    texts = [row["prompt"] for row in read_table(args.examples, ["prompt"])]
    if not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"data: {args.examples}: the column prompt must hold a text in each row")
    prompts = PromptFormat(tokenizer, config.model.prompt_format).encode(texts)
    extended, found = add_class(router, name, prompts, config.false_claim)
    # The bank first: an adapter that no router names does no harm, a router that names a missing one stops a job.
    _copy(args.adapter, args.bank / name)
    part = args.router.parent / f".{args.router.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    extended.save(part)
    swap_folder(part, args.router)
    print(_summary(name, len(prompts), found, args.router))
    return OK


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jobs.add_adapter", description="Add an adapter without retraining.")
    parser.add_argument("--bank", required=True, type=Path, help="the bank that gets the adapter")
    parser.add_argument("--router", required=True, type=Path, help="the router that gets a class for it")
    parser.add_argument("--adapter", required=True, type=Path, help="a PEFT folder")
    parser.add_argument("--examples", required=True, help="8 to 64 prompts that it should answer (column prompt)")
    parser.add_argument("--name", help="name of the adapter (default: that of its folder)")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")
    return parser.parse_intermixed_args(argv)


def _checked_bank(bank: Path, adapter: Path, name: str, model: str, config: AddAdapterConfig) -> AdapterBank:
    """The bank, after a check that the adapter fits the base model and its name is free."""
    whole, trusted = adapter.resolve(), config.model.trust_remote_code
    load_bank(whole.parent, [whole.name], load_config(model, trusted), model, trusted)
    there = bank / name
    if there.exists() and any(
        not (there / file).is_file() or (there / file).read_bytes() != (adapter / file).read_bytes()
        for file in (CONFIG_FILE, WEIGHTS_FILE)
    ):
        raise UserError(f"bank: {bank} has another adapter {name!r} already; give a --name")
    return AdapterBank.load(bank)


def _copy(adapter: Path, target: Path) -> None:
    if target.exists():
        return
    part = target.parent / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(adapter / file, part / file)
    swap_folder(part, target)


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
