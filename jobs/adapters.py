"""List the adapters of a bank: rank, modules, size, and what would be refused."""

from collections.abc import Sequence
from pathlib import Path

import click

from jobs._cli import OK, Job, run_job
from pipeline.adapters import Adapter, AdapterBank, adapter_names, is_adapter_name, weight_files
from pipeline.engine import check_bank
from pipeline.errors import UserError, first_names
from pipeline.models import load_config, load_skeleton, resolve_model
from pipeline.models.resolve import cache_dir
from pipeline.storage.store.local_copy import has_values, local_copy
from pipeline.untrusted import short_repr


@click.command("adapters", cls=Job)
@click.option("--bank", required=True, metavar="URL", help="The bank, a folder with one PEFT folder for each adapter.")
@click.option("--model", metavar="URL", help="Base model (folder, hub id or URL) to check the adapters against.")
def main(bank: str, model: str | None) -> int:
    """List the adapters of a bank: rank, modules, size, and what would be refused.

    \b
    loraloom adapters --bank URL [--model URL]

    A bank of another store is copied to this machine first. Without --model only what is wrong with the adapters
    themselves is found. Exit 2 only if the bank cannot be read.
    """
    copies = cache_dir() / "copies"
    folder = Path(local_copy(bank, copies, "bank"))
    base = resolve_model(local_copy(model, copies, "model", values=False)) if model else None
    skeleton = load_skeleton(load_config(base)) if base else None
    names = adapter_names(folder)
    rows: list[tuple[str, ...]] = [("name", "rank", "modules", "size", "parameters")]
    problems, notes = [], []
    for name in names:
        try:
            checked = AdapterBank.load(folder, [name])
            if base and skeleton is not None:
                check_bank(checked, skeleton, base, has_values(base))
            else:
                checked.check_values()
                notes += _notes(checked.adapters[name])
            rows.append(_row(checked.adapters[name], folder))
        except UserError as error:
            rows.append((name if is_adapter_name(name) else short_repr(name), "-", "refused", "-", "-"))
            problems.append(str(error))
    _print_table(rows)
    print(f"{len(names)} adapters, {len(problems)} refused")
    for line in problems + notes:
        print(line)
    return OK


def _notes(adapter: Adapter) -> list[str]:
    copies = sorted(adapter.copies)
    named = first_names(copies)
    what = f"bank: adapter {adapter.name!r} carries {named}, which must equal the base model's: give --model to compare"
    return [what] if copies else []


def _row(adapter: Adapter, folder: Path) -> tuple[str, ...]:
    ranks = sorted({weights.rank for weights in adapter.modules.values()})
    modules = sorted({name.rpartition(".")[2] for name in adapter.modules})
    parameters = sum(t.numel() for weights in adapter.modules.values() for t in weights.tensors.values())
    kilobytes = sum(path.stat().st_size for path in weight_files(folder / adapter.name)) / 1e3
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return adapter.name, rank, ",".join(modules), f"{kilobytes:,.1f} kB", f"{parameters:,}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_job(main)
