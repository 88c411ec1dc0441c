"""Why a prompt got its mixture: the router's most likely classes, the in-domain score and the gate's threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.records import Mixture

from .policy import RoutingPolicy
from .router import Router


@dataclass(frozen=True)
class Explanation:
    """What led to a route. ``classes``: adapters and their calibrated probabilities, the most likely first.

    ``accepted``: the score reaches the gate's threshold, or the prompt is clearly one of an added class.
    """

    classes: tuple[tuple[str, float], ...]
    score: float
    threshold: float
    accepted: bool
    mixture: Mixture

    def lines(self, policy: RoutingPolicy) -> list[str]:
        """For people: the classes, the gate, and how one became the other."""
        classes = ", ".join(f"{name} {probability:.3f}" for name, probability in self.classes)
        sign = ">=" if self.score >= self.threshold else "<"
        gate = f"score {self.score:.3f} {sign} {self.threshold:.3f} (routing.acceptance={policy.acceptance:g})"
        return [
            f"classes    {classes}",
            f"gate       {gate}: {self._verdict(policy)}",
            f"mixture    {self._why(policy)}",
        ]

    def _verdict(self, policy: RoutingPolicy) -> str:
        if not policy.gate:
            return "not asked (routing.gate=false)"
        if self.accepted:
            return "in domain" if self.score >= self.threshold else "in domain, near to an adapter that was added later"
        return "out of domain"

    def _why(self, policy: RoutingPolicy) -> str:
        if policy.gate and not self.accepted:
            return "base  (fallback: the base model alone)"
        if policy.max_adapters == 0:
            return "base  (routing.max_adapters=0)"
        kept = f"the fewest classes that reach routing.top_p={policy.top_p:g}, at most {policy.max_adapters}"
        return f"{self.mixture.key}  ({kept}; weights in 1/{policy.weight_steps})"


@torch.inference_mode()
def explain(
    router: Router, prompts: Sequence[Sequence[int]], policy: RoutingPolicy, most: int = 5
) -> list[Explanation]:
    """One explanation for each prompt (token ids, at least one each), with the mixture that `Router.route` gives."""
    if not prompts:
        return []
    embedded = router.embed(prompts)
    probabilities = router.probabilities(embedded)
    scores, accepted = router.judge(embedded, policy.acceptance)
    top = probabilities.sort(dim=1, descending=True, stable=True)
    threshold = router.threshold(policy.acceptance)
    routes = router.route(prompts, policy)
    return [
        Explanation(
            tuple(zip((router.labels[c] for c in places), values, strict=True)), score, threshold, inside, r.mixture
        )
        for places, values, score, inside, r in zip(
            top.indices[:, :most].tolist(),
            top.values[:, :most].tolist(),
            scores.float().tolist(),
            accepted.tolist(),
            routes,
            strict=True,
        )
    ]
