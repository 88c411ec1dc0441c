"""Adding an adapter to a trained router from a few example prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from pipeline.errors import UserError

from .policy import RoutingPolicy
from .router import Known, Router

LEAST_EXAMPLES = 8


@dataclass(frozen=True)
class Extension:
    """What adding a class did, as shares.

    ``recall``: examples that get the new class when each is left out of the centroid in turn; ``taken``: held-out
    prompts of the trained classes that now get it; ``accuracy_before`` and ``accuracy_after``: top-1 of these;
    ``accepted``: examples that the gate lets through, again each left out in turn.
    """

    recall: float
    taken: float
    accuracy_before: float
    accuracy_after: float
    accepted: float


def add_class(
    router: Router, name: str, prompts: Sequence[Sequence[int]], false_claim: float
) -> tuple[Router, Extension]:
    """A router that also knows the adapter ``name``, from 8 or more example prompts (token ids); nothing is retrained.

    At most the share ``false_claim`` of the trained classes' held-out prompts go over to it.
    """
    if name in router.labels:
        raise UserError(f"router: it has a class {name!r} already")
    if len(prompts) < LEAST_EXAMPLES:
        raise UserError(f"router: {len(prompts)} example prompt(s) of {name!r}; at least {LEAST_EXAMPLES} are needed")
    examples = router.embed(prompts)
    held_out, targets = router.known.held_out.double(), router.known.held_out_targets
    new = _extended(router, name, examples, false_claim)
    before, after = (r.probabilities(held_out).argmax(1) for r in (router, new))
    place = len(router.labels)
    left_out = _left_out(router, name, examples, false_claim)
    return new, Extension(
        recall=sum(gets_it for gets_it, _ in left_out) / len(left_out),
        taken=float((after == place).double().mean()),
        accuracy_before=float((before == targets).double().mean()),
        accuracy_after=float((after == targets).double().mean()),
        accepted=sum(accepted for _, accepted in left_out) / len(left_out),
    )


def _extended(router: Router, name: str, examples: torch.Tensor, false_claim: float) -> Router:
    known, place = router.known, len(router.labels)
    head = router.head.to(torch.float64).with_class(examples, known.held_out.double(), false_claim)
    known = Known(
        torch.cat([known.references, normalize(examples, dim=1).float()]),
        torch.cat([known.reference_targets, torch.full((len(examples),), place)]),
        known.held_out,
        known.held_out_targets,
    )
    added = [*router.card.get("added", []), {"label": name, "examples": len(examples), "false_claim": false_claim}]
    card = router.card | {"labels": [*router.labels, name], "added": added}
    return router.extended(known, head.to(torch.float32), card)


def _left_out(router: Router, name: str, examples: torch.Tensor, false_claim: float) -> list[tuple[bool, bool]]:
    """For each example, with the class made of the others: does it get the class, does the gate let it through?"""
    found = []
    for place in range(len(examples)):
        others = torch.cat([examples[:place], examples[place + 1 :]])
        extended, example = _extended(router, name, others, false_claim), examples[place : place + 1]
        gets_it = int(extended.probabilities(example).argmax(1)) == len(router.labels)
        found.append((gets_it, bool(extended.judge(example, RoutingPolicy().acceptance)[1])))
    return found
