"""List the adapters of a bank: rank, modules, size, and what would be refused."""

from collections.abc import Sequence
from pathlib import Path

import click

from jobs._cli import OK, Job, run_job
from pipeline.adapters import WEIGHTS_FILE, Adapter, AdapterBank, BaseShapes, adapter_names, is_adapter_name
from pipeline.engine import base_shapes
from pipeline.errors import UserError
from pipeline.models import load_config, load_skeleton, resolve_model
from pipeline.models.resolve import cache_dir
from pipeline.storage.store.local_copy import local_copy
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
    shapes: BaseShapes | None = None
    if model:
        resolved = resolve_model(local_copy(model, copies, "model", values=False))
        shapes = base_shapes(load_skeleton(load_config(resolved)))
    names = adapter_names(folder)
    rows: list[tuple[str, ...]] = [("name", "rank", "modules", "size", "parameters")]
    problems = []
    for name in names:
        try:
            checked = AdapterBank.load(folder, [name])
            if shapes:
                checked.check_base(shapes, str(model))
            checked.check_values()
            rows.append(_row(checked.adapters[name], folder))
        except UserError as error:
            rows.append((name if is_adapter_name(name) else short_repr(name), "-", "refused", "-", "-"))
            problems.append(str(error))
    _print_table(rows)
    print(f"{len(names)} adapters, {len(problems)} refused")
    print("\n".join(problems), end="\n" if problems else "")
    return OK


def _row(adapter: Adapter, folder: Path) -> tuple[str, ...]:
    ranks = sorted({weights.rank for weights in adapter.modules.values()})
    modules = sorted({name.rpartition(".")[2] for name in adapter.modules})
    parameters = sum(t.numel() for weights in adapter.modules.values() for t in weights.tensors.values())
    kilobytes = (folder / adapter.name / WEIGHTS_FILE).stat().st_size / 1e3
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return adapter.name, rank, ",".join(modules), f"{kilobytes:,.1f} kB", f"{parameters:,}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_job(main)
