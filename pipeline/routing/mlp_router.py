"""The mini-MLP router: a network, a gate and added classes, saved as safetensors and JSON."""

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.untrusted import check_tensor_file

from .calibration import gate_score
from .centroids import CentroidHead
from .network import RouterNetwork, TokenBag, flatten_prompts
from .router import Classification, Router
from .validation import check_files

_WEIGHTS, _CARD = "router.safetensors", "router.json"
_MAX_BYTES = 2**29  # of a router's tensors: they are held several times over, as fp64 too
_NETWORK, _HELD_OUT, _HEAD = "model.", "held_out.", "classes."  # prefixes of the tensors' names
# The values of router.json that decide routes, besides the tensors.
_HASHED = ("labels", "temperature", "gate_thresholds", "tokenizer_fingerprint", "prompt_format", "fallback")


@dataclass(frozen=True)
class HeldOut:
    """Mean embeddings [h x E] of prompts that were not trained on, by which added classes are measured.

    ``targets`` [h] are the indices of their classes in the labels.
    """

    embedded: torch.Tensor
    targets: torch.Tensor


class MlpRouter(Router):
    """Routes by a small network over the mean token embedding of a prompt."""

    kind = "mlp"
    network_type: ClassVar[type[TokenBag]] = RouterNetwork

    def __init__(self, model: TokenBag, held_out: HeldOut, head: CentroidHead, card: dict[str, Any]) -> None:
        self.model = model.eval()
        # Routing runs in fp64: in fp32 the last bits depend on the batch, and near a tie the route with them.
        self._network = copy.deepcopy(model).double()
        self.vocab_size = model.shape.vocab_size
        self._trained = torch.arange(model.shape.classes)  # the network's classes that count, see `without`
        self.held_out = held_out
        self._set_classes(head, card)

    def with_classes(self, head: CentroidHead, card: dict[str, Any]) -> "MlpRouter":
        """Return a router that shares this network and has other classes beside the trained ones."""
        other = copy.copy(self)
        other._set_classes(head, card)
        return other

    def without(self, labels: Collection[str]) -> "MlpRouter":
        """See `Router.without`. The classes' probabilities go to the others in proportion; their centroids are gone.

        The network, its embeddings and the thresholds have still seen these classes. So its gate rejects more of their
        prompts than that of a router which never saw them, and other classes may be nearest. It cannot be saved, nor
        be given further classes.
        """
        kept = torch.tensor([label not in labels for label in self.labels])
        trained, added = kept[: len(self._trained)], kept[len(self._trained) :]
        head = self.head
        other = self.with_classes(
            CentroidHead(head.trained[trained], head.added[added], head.margins[added], head.floors[added]),
            self.card | {"labels": [label for label in self.labels if label not in labels]},
        )
        other._trained = self._trained[trained]
        return other

    def _set_classes(self, head: CentroidHead, card: dict[str, Any]) -> None:
        self.head = head
        self._head = head.to(torch.float64)
        self.card = {"fallback": self.fallback} | card
        self.labels = card["labels"]
        self.temperature: float = card["temperature"]
        self._thresholds: dict[str, float] = card["gate_thresholds"]
        self.fallback = self.card["fallback"]
        self.trained_for = {name: card[name] for name in ("tokenizer_fingerprint", "prompt_format")}

    def classify(self, prompts: Sequence[Sequence[int]], acceptance: float) -> Classification:
        """See `Router.classify`."""
        embedded = self.embed(prompts)
        return Classification(self.probabilities(embedded), *self.check_domain(embedded, acceptance))

    @torch.inference_mode()
    def embed(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the mean token embeddings [n x E] of prompts, fp64."""
        return self._network.embed(*flatten_prompts(prompts))

    @torch.inference_mode()
    def probabilities(self, embedded: torch.Tensor) -> torch.Tensor:
        """Return calibrated class probabilities [n x labels] of mean embeddings [n x E]; `UserError` if not finite."""
        trained = (self._network.classify(embedded)[:, self._trained] / self.temperature).softmax(1)
        found = self._head.probabilities(embedded, trained)
        if not found.isfinite().all():
            raise UserError("router: its weights give NaN or infinite probabilities; train it again")
        return found

    @torch.inference_mode()
    def check_domain(self, embedded: torch.Tensor, acceptance: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the in-domain scores [n] of mean embeddings [n x E], and whether the gate accepts each [n].

        It accepts a prompt that is near to the centroid of a class, or clearly one of an added class.
        """
        scores = gate_score(embedded, torch.cat([self._head.trained, self._head.added]))
        return scores, (scores >= self.threshold(acceptance)) | self._head.accepts(embedded)

    def threshold(self, acceptance: float) -> float:
        """See `Router.threshold`."""
        if str(acceptance) not in self._thresholds:
            raise UserError(f"config: routing.acceptance={acceptance}: this router has {', '.join(self._thresholds)}")
        return self._thresholds[str(acceptance)]

    @property
    def fingerprint(self) -> str:
        """See `Router.fingerprint`; known once the router was saved."""
        return str(self.card["fingerprint"])

    def save(self, folder: Path) -> None:
        """Write ``router.safetensors`` and ``router.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / _WEIGHTS)
        self.card |= {"kind": self.kind, "fingerprint": self._hash()}
        (folder / _CARD).write_text(json.dumps(self.card, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Self:
        """See `Router.load`."""
        check_tensor_file(folder / _WEIGHTS, _MAX_BYTES)
        tensors = load_file(folder / _WEIGHTS)
        check_files(card, tensors, cls.network_type)
        model = cls.network_type.of(card["shape"])
        model.load_state_dict(_part(tensors, _NETWORK))
        router = cls(model, HeldOut(**_part(tensors, _HELD_OUT)), CentroidHead(**_part(tensors, _HEAD)), card)
        if not all(torch.isfinite(t).all() for t in router._tensors().values()):
            raise ValueError(f"NaN or infinite weights in {_WEIGHTS}")
        if set(tensors) != set(router._tensors()) or router._hash() != card.get("fingerprint"):
            raise ValueError(f"{_WEIGHTS} and {_CARD} do not belong together")
        return router

    def _tensors(self) -> dict[str, torch.Tensor]:
        halved = {name: tensor.half() for name, tensor in self.model.state_dict().items()}
        parts = {_NETWORK: halved, _HELD_OUT: vars(self.held_out), _HEAD: vars(self.head)}
        return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}

    def _hash(self) -> str:
        digest = hashlib.sha256(repr([self.card[name] for name in _HASHED]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
