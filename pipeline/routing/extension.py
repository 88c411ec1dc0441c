"""Add an adapter to a trained router from a few example prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import UserError

from .mlp_router import MlpRouter
from .policy import RoutingPolicy
from .router import Router

MIN_EXAMPLES = 8


@dataclass(frozen=True)
class Extension:
    """Measured effect of an added class, as shares from 0 to 1.

    ``recall``: examples that get the new class when each is left out of the centroid in turn; ``taken``: held-out
    prompts of the trained classes that now get it; ``accuracy_before`` and ``accuracy_after``: top-1 accuracy on the
    held-out prompts; ``accepted``: examples that the gate accepts, again each left out in turn.
    """

    recall: float
    taken: float
    accuracy_before: float
    accuracy_after: float
    accepted: float


def add_class(
    router: Router, name: str, prompts: Sequence[Sequence[int]], false_claim: float
) -> tuple[MlpRouter, Extension]:
    """Return a router that also knows the adapter ``name``, without retraining, and the measured effect.

    ``prompts``: 8 or more examples (token ids). ``false_claim``: the largest share of the trained classes' held-out
    prompts that may move to the new class. Raises `UserError` for a known name, too few examples, or a kind of router
    that has no centroids.
    """
    if not isinstance(router, MlpRouter):
        raise UserError(
            f"router: classes can be added to the kind {MlpRouter.kind}, this one is of the kind {router.kind}"
        )
    if name in router.labels:
        raise UserError(f"router: it has a class {name!r} already")
    if len(prompts) < MIN_EXAMPLES:
        raise UserError(f"router: {len(prompts)} example prompt(s) of {name!r}; at least {MIN_EXAMPLES} are needed")
    examples = router.embed(prompts)
    held_out, targets = router.held_out.embedded.double(), router.held_out.targets
    new = _extended(router, name, examples, false_claim)
    before, after = (r.probabilities(held_out).argmax(1) for r in (router, new))
    left_out = _left_out(router, name, examples, false_claim)
    return new, Extension(
        recall=sum(gets_it for gets_it, _ in left_out) / len(left_out),
        taken=float((after == len(router.labels)).double().mean()),
        accuracy_before=float((before == targets).double().mean()),
        accuracy_after=float((after == targets).double().mean()),
        accepted=sum(accepted for _, accepted in left_out) / len(left_out),
    )


def _extended(router: MlpRouter, name: str, examples: torch.Tensor, false_claim: float) -> MlpRouter:
    head = router.head.to(torch.float64).with_class(examples, router.held_out.embedded.double(), false_claim)
    added = [*router.card.get("added", []), {"label": name, "examples": len(examples), "false_claim": false_claim}]
    card = router.card | {"labels": [*router.labels, name], "added": added}
    return router.with_classes(head.to(torch.float32), card)


def _left_out(router: MlpRouter, name: str, examples: torch.Tensor, false_claim: float) -> list[tuple[bool, bool]]:
    """Whether each example gets a class made of the others, and whether the gate accepts it."""
    found = []
    for index in range(len(examples)):
        others = torch.cat([examples[:index], examples[index + 1 :]])
        extended, example = _extended(router, name, others, false_claim), examples[index : index + 1]
        gets_it = int(extended.probabilities(example).argmax(1)) == len(router.labels)
        found.append((gets_it, bool(extended.check_domain(example, RoutingPolicy().acceptance)[1])))
    return found
