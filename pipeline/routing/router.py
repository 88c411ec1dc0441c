"""A trained router: labels, network, gate, added classes; saved as safetensors and JSON."""

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

from pipeline.errors import UserError
from pipeline.records import Mixture
from pipeline.untrusted import check_tensor_file, one_line, read_json, shown

from .added import CentroidHead
from .gate import gate_score
from .model import RouterModel, RouterShape, flatten
from .policy import RoutingPolicy
from .saved import check_saved

_WEIGHTS, _CARD = "router.safetensors", "router.json"
_LARGEST = 2**29  # bytes of a router's tensors: they are held several times over, as fp64 too
_MODEL, _KNOWN, _HEAD = "model.", "known.", "classes."  # prefixes of the tensors' names
_DECIDING = ("labels", "temperature", "gate_thresholds", "tokenizer_fingerprint", "prompt_format")  # of routes


@dataclass(frozen=True)
class Route:
    """What the router says of one prompt. ``score``: in-domain score; ``fallback``: it is below the threshold."""

    mixture: Mixture
    score: float
    fallback: bool


@dataclass(frozen=True)
class Known:
    """Mean token embeddings of prompts that the gate and added classes are measured by.

    ``references`` [m x E]: unit vectors of training prompts, and of the examples of added classes; ``held_out``
    [h x E]: prompts that were not trained on. The targets [m] and [h] are the places of their classes in the labels.
    """

    references: torch.Tensor
    reference_targets: torch.Tensor
    held_out: torch.Tensor
    held_out_targets: torch.Tensor


class Router:
    """Routes token ids of prompts to mixtures of the adapters named by ``labels``."""

    def __init__(self, model: RouterModel, known: Known, head: CentroidHead, card: dict[str, Any]) -> None:
        self.model = model.eval()
        # Routing runs in fp64: in fp32 the last bits depend on the batch, and near a tie the route with them.
        self._network = copy.deepcopy(model).double()
        self._set(known, head, card)

    def extended(self, known: Known, head: CentroidHead, card: dict[str, Any]) -> "Router":
        """A router with the same network, shared with this one, and other classes beside the trained ones."""
        other = copy.copy(self)
        other._set(known, head, card)
        return other

    def _set(self, known: Known, head: CentroidHead, card: dict[str, Any]) -> None:
        self.known = known
        self.head = head
        self._references = known.references.double()
        self._head = head.to(torch.float64)
        self.card = card
        self.labels: list[str] = card["labels"]
        self.temperature: float = card["temperature"]
        self._thresholds: dict[str, float] = card["gate_thresholds"]
        self.trained_for = {name: card[name] for name in ("tokenizer_fingerprint", "prompt_format")}

    @torch.inference_mode()
    def route(self, prompts: Sequence[Sequence[int]], policy: RoutingPolicy) -> list[Route]:
        """One route for each prompt (token ids, at least one each)."""
        if not prompts:
            return []
        embedded = self.embed(prompts)
        mixtures = policy.mixtures(self.probabilities(embedded), self.labels)
        scores, accepted = self.judge(embedded, policy.acceptance)
        return [
            Route(Mixture() if policy.gate and not inside else mixture, score, policy.gate and not inside)
            for mixture, score, inside in zip(mixtures, scores.float().tolist(), accepted.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def judge(self, embedded: torch.Tensor, acceptance: float) -> tuple[torch.Tensor, torch.Tensor]:
        """In-domain scores [n] of mean embeddings [n x E], and whether the gate lets each through [n].

        It does where the prompt is near to training prompts, or clearly one of an added class.
        """
        scores = gate_score(embedded, self._references)
        return scores, (scores >= self.threshold(acceptance)) | self._head.accepts(embedded)

    def embed(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Mean token embeddings [n x E], fp64."""
        with torch.inference_mode():
            return self._network.embed(*flatten(prompts))

    def probabilities(self, embedded: torch.Tensor) -> torch.Tensor:
        """Calibrated class probabilities [n x labels] of mean embeddings [n x E]; `UserError` if they are none."""
        with torch.inference_mode():
            trained = (self._network.classify(embedded) / self.temperature).softmax(1)
            found = self._head.probabilities(embedded, trained)
        if not found.isfinite().all():  # finite weights may be large enough for it
            raise UserError("router: its weights give probabilities that are no numbers; train it anew")
        return found

    def threshold(self, acceptance: float) -> float:
        """Gate score that the share ``acceptance`` of in-domain prompts reaches; `UserError` if not calibrated."""
        if str(acceptance) not in self._thresholds:
            raise UserError(f"config: routing.acceptance={acceptance}: this router has {', '.join(self._thresholds)}")
        return self._thresholds[str(acceptance)]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a route."""
        return str(self.card["fingerprint"])

    @staticmethod
    def load_for(
        folder: str | Path, adapters: Collection[str], bank: str, vocabulary: dict[str, int], prompt_format: str
    ) -> "Router":
        """Read a saved router; `UserError` where it does not fit the bank, the tokenizer or the prompt format."""
        router = Router.load(folder)
        router.check_bank(adapters, bank)
        router.check_prompts(tokenizer_fingerprint(vocabulary), prompt_format)
        if router.model.shape.vocab_size <= max(vocabulary.values()):
            raise UserError(f"router: {folder} knows fewer tokens than the tokenizer has; train it anew")
        return router

    def check_bank(self, adapters: Collection[str], bank: str) -> None:
        """`UserError` if a label is no adapter of the bank."""
        missing = sorted(set(self.labels) - set(adapters))
        if missing:
            raise UserError(
                f"router: it names adapters that the bank {bank} lacks: {', '.join(map(_named, missing))};"
                " use the router that was trained for this bank, or add the adapters"
            )

    def check_prompts(self, tokenizer_fingerprint: str, prompt_format: str) -> None:
        """`UserError` if prompts are tokenised or rendered otherwise than in training."""
        for name, now in [("tokenizer_fingerprint", tokenizer_fingerprint), ("prompt_format", prompt_format)]:
            trained = self.trained_for[name]
            if trained != now:
                raise UserError(
                    f"router: it was trained with {name}={_named(trained)}, this model has {now};"
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
            card = read_json(root / _CARD)
            check_tensor_file(root / _WEIGHTS, _LARGEST)
            tensors = load_file(root / _WEIGHTS)
            check_saved(card, tensors)
            model = RouterModel(RouterShape(**card["shape"]))
            model.load_state_dict(_part(tensors, _MODEL))
            router = Router(model, Known(**_part(tensors, _KNOWN)), CentroidHead(**_part(tensors, _HEAD)), card)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"router: cannot load {root}: {one_line(error)}; it should hold {_CARD} and {_WEIGHTS}"
            ) from None
        if not all(torch.isfinite(t).all() for t in router._tensors().values()):
            raise UserError(f"router: NaN or infinite weights in {root / _WEIGHTS}")
        if set(tensors) != set(router._tensors()) or router._hash() != card.get("fingerprint"):
            raise UserError(f"router: {root}: weights and {_CARD} do not belong together; save or copy both again")
        return router

    def _tensors(self) -> dict[str, torch.Tensor]:
        halved = {name: tensor.half() for name, tensor in self.model.state_dict().items()}
        parts = {_MODEL: halved, _KNOWN: vars(self.known), _HEAD: vars(self.head)}
        return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}

    def _hash(self) -> str:
        digest = hashlib.sha256(repr([self.card[name] for name in _DECIDING]).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _named(name: str) -> str:
    return name if name.isprintable() and len(name) <= 100 else shown(name)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def tokenizer_fingerprint(vocabulary: dict[str, int]) -> str:
    """Hash of a tokenizer's vocabulary."""
    digest = hashlib.sha256()
    for token, number in sorted(vocabulary.items()):
        digest.update(f"{number}\0{token}\0".encode())
    return digest.hexdigest()[:16]
