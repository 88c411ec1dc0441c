"""Model, bank and router on the node that needs them: brought there once, by whoever asks first."""

from dataclasses import replace

from pipeline.models import resolve_model
from pipeline.models.resolve import cache_dir
from pipeline.settings import JobSettings
from pipeline.storage.store.local_copy import local_copy


def on_this_node(settings: JobSettings) -> JobSettings:
    """The settings with folders of this machine in the place of URLs, packages and GGUF files.

    A hub id stays one: the hub's own cache downloads it once a machine. `UserError` where something is missing.
    """
    copies = cache_dir() / "copies"
    model = resolve_model(local_copy(settings.model.folder, copies, "model"))
    return replace(
        settings,
        model=replace(settings.model, folder=model),
        bank=local_copy(settings.bank, copies, "bank"),
        router=local_copy(settings.router, copies, "router"),
    )
