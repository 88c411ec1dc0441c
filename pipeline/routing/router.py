"""A trained router: labels, weights, gate; saved as safetensors and JSON."""

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import UserError
from ..records import Mixture
from .gate import gate_score
from .model import RouterModel, RouterShape, flatten
from .policy import RoutingPolicy

_WEIGHTS, _CARD = "router.safetensors", "router.json"


@dataclass(frozen=True)
class Route:
    """What the router says of one prompt. ``score``: in-domain score; ``fallback``: it is below the threshold."""

    mixture: Mixture
    score: float
    fallback: bool


class Router:
    """Routes token ids of prompts to mixtures of the adapters named by ``labels``."""

    def __init__(self, model: RouterModel, card: dict[str, Any]) -> None:
        self.model = model.eval()
        # Routing runs in fp64: in fp32 the last bits depend on the batch, and near a tie the route with them.
        self._network = copy.deepcopy(model).double()
        self.card = card
        self.labels: list[str] = card["labels"]
        self.threshold: float = card["gate_threshold"]
        self.trained_for = {name: card[name] for name in ("tokenizer_fingerprint", "prompt_format")}

    @torch.inference_mode()
    def route(self, prompts: Sequence[Sequence[int]], policy: RoutingPolicy) -> list[Route]:
        """One route for each prompt (token ids, at least one each)."""
        if not prompts:
            return []
        logits = self._network(*flatten(prompts))
        mixtures = policy.mixtures(logits.softmax(1), self.labels)
        scores = gate_score(logits).float().tolist()
        outside = [policy.gate and score < self.threshold for score in scores]
        return [
            Route(Mixture() if out else mixture, score, out)
            for mixture, score, out in zip(mixtures, scores, outside, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """Hash of weights, labels and gate."""
        return str(self.card["fingerprint"])

    def check_bank(self, adapters: Collection[str], bank: str) -> None:
        """`UserError` if a label is no adapter of the bank."""
        missing = sorted(set(self.labels) - set(adapters))
        if missing:
            raise UserError(
                f"router: it names adapters that the bank {bank} lacks: {', '.join(missing)};"
                " use the router that was trained for this bank, or add the adapters"
            )

    def check_prompts(self, tokenizer_fingerprint: str, prompt_format: str) -> None:
        """`UserError` if prompts are tokenised or rendered otherwise than in training."""
        for name, now in [("tokenizer_fingerprint", tokenizer_fingerprint), ("prompt_format", prompt_format)]:
            trained = self.trained_for[name]
            if trained != now:
                raise UserError(
                    f"router: it was trained with {name}={trained}, this model has {now};"
                    " train a router for it (jobs.train_router)"
                )

    def save(self, folder: Path) -> None:
        """Write ``router.safetensors`` and ``router.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / _WEIGHTS)
        self.card["fingerprint"] = self._hash()
        (folder / _CARD).write_text(json.dumps(self.card, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "Router":
        """Read a saved router; `UserError` where a file is missing, damaged, or does not belong to the other."""
        root = Path(folder)
        try:
            card = json.loads((root / _CARD).read_text())
            tensors = load_file(root / _WEIGHTS)
            model = RouterModel(RouterShape(**card["shape"]))
            model.load_state_dict(tensors)
            router = Router(model, card)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"router: cannot load {root}: {reason}; it should hold {_CARD} and {_WEIGHTS}") from None
        if router._hash() != card.get("fingerprint"):
            raise UserError(f"router: {root}: weights and {_CARD} do not belong together; save or copy both again")
        if not all(torch.isfinite(t).all() for t in router._tensors().values()):
            raise UserError(f"router: NaN or infinite weights in {root / _WEIGHTS}")
        return router

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())

    def _hash(self) -> str:
        stated = [self.card[name] for name in ("labels", "gate_threshold", "tokenizer_fingerprint", "prompt_format")]
        digest = hashlib.sha256(repr(stated).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def tokenizer_fingerprint(vocabulary: dict[str, int]) -> str:
    """Hash of a tokenizer's vocabulary."""
    digest = hashlib.sha256()
    for token, number in sorted(vocabulary.items()):
        digest.update(f"{number}\0{token}\0".encode())
    return digest.hexdigest()[:16]
