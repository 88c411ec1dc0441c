"""The interface of a router, whatever its kind: token ids of prompts in, mixtures of adapters out."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from pipeline.errors import UserError, first_names
from pipeline.records import Mixture
from pipeline.untrusted import printable_name

from .policy import Fallback, RoutingPolicy


@dataclass(frozen=True)
class Route:
    """The route of one prompt.

    ``score``: in-domain score; ``confidence``: calibrated probability of the likeliest class; ``fallback``: rejected
    by the gate.
    """

    mixture: Mixture
    score: float
    confidence: float
    fallback: bool


@dataclass(frozen=True)
class Classification:
    """Calibrated ``probabilities`` [n x labels] of n prompts, in-domain ``scores`` [n], the gate's ``accepted`` [n]."""

    probabilities: torch.Tensor
    scores: torch.Tensor
    accepted: torch.Tensor


class Router(ABC):
    """Routes prompts to mixtures of the adapters named by ``labels``.

    ``kind``: its name in ``router.json``. ``vocab_size``: it knows the token ids below this. ``trained_for``: the
    `tokenizer_fingerprint` and `prompt_format` of its training prompts. ``fallback``: of prompts that the gate rejects,
    unless the policy has one.
    """

    kind: ClassVar[str]
    labels: list[str]
    vocab_size: int
    trained_for: dict[str, str]
    fallback: Fallback = "base"

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Self:
        """Read a router from its folder and ``router.json``, both untrusted; `ValueError` or `OSError` if damaged."""

    @abstractmethod
    def classify(self, prompts: Sequence[Sequence[int]], acceptance: float) -> Classification:
        """Classify prompts (token ids, at least one prompt and one token each); ``acceptance``: see `threshold`."""

    @abstractmethod
    def threshold(self, acceptance: float) -> float:
        """Return the score that the share ``acceptance`` of in-domain prompts reaches; `UserError` if unknown."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that decides a route."""

    @torch.inference_mode()
    def route(self, prompts: Sequence[Sequence[int]], policy: RoutingPolicy) -> list[Route]:
        """Return one route for each prompt (token ids, at least one each)."""
        if not prompts:
            return []
        policy = policy.for_router(self.fallback)
        found = self.classify(prompts, policy.acceptance)
        rejected = ~found.accepted & policy.gate
        fallbacks = iter(policy.fallbacks(found.probabilities[rejected], self.labels))
        return [
            Route(next(fallbacks) if is_rejected else mixture, score, confidence, is_rejected)
            for mixture, score, confidence, is_rejected in zip(
                policy.mixtures(found.probabilities, self.labels),
                found.scores.float().tolist(),
                found.probabilities.amax(1).tolist(),
                rejected.tolist(),
                strict=True,
            )
        ]

    def without(self, labels: Collection[str]) -> "Router":
        """Return this router as it would be if it did not know some classes, to measure what unknown tasks get.

        Raises `UserError` if the kind of router cannot.
        """
        raise UserError(f"router: classes cannot be left out of the kind {self.kind}")

    def check_bank(self, adapters: Collection[str], bank: str) -> None:
        """Raise `UserError` if a label is no adapter of the bank."""
        missing = sorted(set(self.labels) - set(adapters))
        if missing:
            others = self.unnamed(adapters)
            has = f" and it has {', '.join(map(printable_name, others[:5]))}, which no class names" if others else ""
            raise UserError(
                f"router: it names adapters that the bank {bank} lacks: {', '.join(map(printable_name, missing))}{has};"
                " use the router that was trained for this bank, or add or rename the adapters"
            )

    def unnamed(self, adapters: Collection[str]) -> list[str]:
        """Return the adapters that no class names, so that no mixture holds them, sorted."""
        return sorted(set(adapters) - set(self.labels))

    def check_prompts(self, tokenizer_fingerprint: str, prompt_format: str) -> None:
        """Raise `UserError` if prompts are tokenised or rendered in another way than in training."""
        for name, now in [("tokenizer_fingerprint", tokenizer_fingerprint), ("prompt_format", prompt_format)]:
            trained = self.trained_for[name]
            if trained != now:
                raise UserError(
                    f"router: it was trained with {name}={printable_name(trained)}, this model has {now};"
                    " train a router for it (loraloom train-router)"
                )


def unnamed_line(adapters: Sequence[str]) -> str:
    """Return the line that names the adapters that no class of a router names (`Router.unnamed`)."""
    shown = first_names([*map(printable_name, adapters)], 10)
    return (
        f"{len(adapters)} adapter(s) of the bank are in no class of the router, so no record gets them: {shown}"
        " (loraloom add-adapter)"
    )


def tokenizer_fingerprint(vocabulary: dict[str, int]) -> str:
    """Hash of a tokenizer's vocabulary."""
    digest = hashlib.sha256()
    for token, number in sorted(vocabulary.items()):
        digest.update(f"{number}\0{token}\0".encode())
    return digest.hexdigest()[:16]
