"""Show a router: classes, held-out accuracy, thresholds of the gate, and what it was trained for."""

from pathlib import Path

import click

from jobs._cli import OK, Job, run_job
from pipeline.adapters import is_adapter_name
from pipeline.models.resolve import cache_dir
from pipeline.routing.loading import load_router
from pipeline.storage.store.local_copy import local_copy
from pipeline.untrusted import read_json, short_repr


@click.command("router", cls=Job)
@click.option("--router", "url", required=True, metavar="URL", help="Folder of the router.")
def main(url: str) -> int:
    """Show a router: classes, held-out accuracy, thresholds of the gate, and what it was trained for.

    \b
    loraloom router --router URL

    A router of another store is copied to this machine first.
    """
    folder = local_copy(url, cache_dir() / "copies", "router")
    router = load_router(folder)
    card = read_json(Path(folder) / "router.json")
    metrics = card.get("metrics", {})
    print(f"kind         {router.kind}, {router.vocab_size:,} token ids")
    print(f"fingerprint  {router.fingerprint}")
    for name, value in router.trained_for.items():
        print(f"trained for  {name}={short_repr(value)}")
    if metrics:
        accuracy, prompts = metrics.get("held_out_accuracy"), metrics.get("held_out_prompts")
        print(f"accuracy     {_number(accuracy)} on {_number(prompts)} held-out prompts")
    for acceptance, threshold in sorted(card.get("gate_thresholds", {}).items()):
        print(f"gate         routing.acceptance={short_repr(acceptance)} in-domain score from {_number(threshold)}")
    print(f"fallback     {router.fallback}")
    print(f"classes      {len(router.labels)}")
    for label in router.labels:
        print(f"  {label if is_adapter_name(label) else short_repr(label)}")
    return OK


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else short_repr(value)


if __name__ == "__main__":
    run_job(main)
