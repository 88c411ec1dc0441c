"""Keep one copy of model, bank and router on each node that needs them."""

from dataclasses import replace

from pipeline.models import cache_dir, resolve_model
from pipeline.settings import JobSettings
from pipeline.storage.store.local_copy import local_copy


def cache_on_node(settings: JobSettings) -> JobSettings:
    """Download model, bank and router unless this node has them; return the settings with their local paths.

    A hub id is returned as it is: the hub's own cache keeps one copy per machine. Raises `UserError` if one of them
    does not exist.
    """
    copies = cache_dir() / "copies"
    model = resolve_model(local_copy(settings.model.path, copies, "model"))
    return replace(
        settings,
        model=replace(settings.model, path=model),
        bank=local_copy(settings.bank, copies, "bank"),
        router=local_copy(settings.router, copies, "router"),
    )
