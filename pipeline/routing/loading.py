"""Load saved routers: the ``kind`` in ``router.json`` names the class that reads the rest of the folder."""

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import UserError, one_line
from pipeline.untrusted import read_json, short_repr

from .centroid_router import CentroidRouter
from .mlp_router import MlpRouter
from .router import Router, tokenizer_fingerprint

ROUTER_KINDS: dict[str, type[Router]] = {kind.kind: kind for kind in (MlpRouter, CentroidRouter)}
"""Every kind of router; a new kind is a subclass of `Router` and an entry here."""


def load_router(folder: str | Path) -> Router:
    """Read a saved router; `UserError` for an unknown kind, or files that are damaged or do not belong together."""
    root = Path(folder)
    try:
        card = read_json(root / "router.json")
        kind = card.get("kind") if isinstance(card, dict) else None
        if not isinstance(kind, str) or kind not in ROUTER_KINDS:
            known = ", ".join(ROUTER_KINDS)
            raise ValueError(f"the kind in router.json is {short_repr(kind)}; known kinds are {known}")
        return ROUTER_KINDS[kind].load(root, card)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"router: cannot load {root}: {one_line(error)}; train a router (loraloom train-router) or copy it again"
        ) from None


def load_router_for(
    folder: str | Path, adapters: Collection[str], bank: str, vocabulary: dict[str, int], prompt_format: str
) -> Router:
    """Read a saved router; raise `UserError` if it does not fit the bank, the tokenizer or the prompt format."""
    router = load_router(folder)
    router.check_bank(adapters, bank)
    router.check_prompts(tokenizer_fingerprint(vocabulary), prompt_format)
    if router.vocab_size <= max(vocabulary.values()):
        raise UserError(f"router: {folder} knows fewer tokens than the tokenizer has; train it again")
    return router
