"""Keep one copy of what a node needs of model, bank and router on it: only engines need the values of weights."""

from dataclasses import replace
from pathlib import Path

from pipeline.models import cache_dir, resolve_model
from pipeline.settings import JobSettings
from pipeline.storage.store.local_copy import local_copy


def cache_for_engine(settings: JobSettings) -> JobSettings:
    """Download model, bank and router unless this node has them; return the settings with their local paths.

    A hub id is returned as it is: the hub's own cache keeps one copy per machine. Raises `UserError` if one of them
    does not exist.
    """
    bank = local_copy(settings.bank, _copies(), "bank")
    return replace(_with_model_and_router(settings, values=True), bank=bank)


def cache_for_checks(settings: JobSettings) -> JobSettings:
    """Like `cache_for_engine`, but the weights of model and bank are downloaded without their values.

    The headers, shapes and fingerprints of such copies are the same as those of whole files.
    """
    bank = local_copy(settings.bank, _copies(), "bank", values=False)
    return replace(_with_model_and_router(settings, values=False), bank=bank)


def cache_for_routing(settings: JobSettings) -> JobSettings:
    """Like `cache_for_checks`, but the bank is left where it is: a router needs no adapter."""
    return _with_model_and_router(settings, values=False)


def _with_model_and_router(settings: JobSettings, values: bool) -> JobSettings:
    model = resolve_model(local_copy(settings.model.path, _copies(), "model", values))
    router = local_copy(settings.router, _copies(), "router")
    return replace(settings, model=replace(settings.model, path=model), router=router)


def _copies() -> Path:
    return cache_dir() / "copies"
