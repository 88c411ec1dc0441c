"""A bank checked against the base model, before the model's weights are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.adapters import AdapterBank
from pipeline.models import load_skeleton

from .layers import base_shapes


def load_bank(
    folder: str | Path, only: Iterable[str] | None, config: Any, model: str, trust_remote_code: bool = False
) -> AdapterBank:
    """The bank of a folder, or those of its adapters in ``only``; `UserError` for what does not fit the model.

    ``config``: the transformers config of the model; ``model``: its folder or hub id, named in errors.
    """
    bank = AdapterBank.load(folder, only)
    skeleton = load_skeleton(config, trust_remote_code)
    bank.check_base(base_shapes(skeleton), model.rstrip("/").rsplit("/", 1)[-1])
    bank.check_values()  # last: it reads all tensors, which have the model's sizes now
    return bank
