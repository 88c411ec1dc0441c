"""The guard of a run: everything that decides its output. A command that finishes the run must have the same."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from pipeline.errors import UserError, first_names
from pipeline.settings import JobSettings
from pipeline.storage.input.files import InputFile
from pipeline.storage.store.redact import masked, masked_path


def make_guard(settings: JobSettings, fingerprints: dict[str, str], files: Sequence[InputFile]) -> dict[str, Any]:
    """Return the guard as JSON values. ``fingerprints``: of model, bank and router; ``files``: of the input."""
    divided = settings.sentences or settings.parts
    granularity = {"granularity": "sentence" if settings.sentences else "parts" if settings.parts else "record"}
    return {
        "fingerprints": {k: fingerprints[k] for k in ("model", "bank", "router")},
        # `is_chat` is prompt_format, which is below.
        "columns": {name: value for name, value in asdict(settings.columns).items() if name != "is_chat"},
        "long_prompts": settings.long_prompts,
        "output.keep_prompt": settings.keep_prompt,
        "generation": orjson.loads(orjson.dumps(asdict(settings.sampling))),
        "routing": asdict(settings.routing) | granularity | ({} if divided is None else asdict(divided)),
        "seed": settings.engine.seed,
        "engine.backend": settings.engine.backend,
        "dtype": settings.model.dtype,
        "quantization": settings.model.quantization,
        **asdict(settings.model.prompts),
        "window.records": settings.window_records,
        "limit": settings.limit,
        "input": [asdict(f) | {"path": masked_path(f.path)} for f in files],
    }


def check_guard(before: dict[str, Any], now: dict[str, Any], output: str) -> None:
    """Raise `UserError` if the earlier run in the output has another guard; the message names what differs."""
    changed = changes(before, now)
    if changed:
        raise UserError(
            f"run: {masked(output)} holds a run that differs in {'; '.join(changed)}."
            " Give the same settings to finish it, another --output, or --new-run to discard it"
        )


def changes(before: Any, now: Any, name: str = "") -> list[str]:
    """Return what differs between two guards, one phrase for each setting."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [c for k in keys for c in changes(before.get(k), now.get(k), f"{name}.{k}" if name else k)]
    if name == "input":
        return _input_changes(before, now)
    return [] if before == now else [f"{name} (was {before!r}, is {now!r})"]


def _input_changes(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    old, new = ({f["path"]: f for f in files} for files in (before, now))
    paths = [p for p in dict.fromkeys([*old, *new]) if old.get(p) != new.get(p)]
    if not paths:
        return []
    return [f"input (changed, added or removed: {first_names(paths)})"]
