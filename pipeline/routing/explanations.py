"""Explain a prompt's mixture: the router's most likely classes, the in-domain score and the gate's threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.records import Mixture

from .policy import RoutingPolicy
from .router import Router


@dataclass(frozen=True)
class Explanation:
    """The reasons for a route. ``classes``: adapters and their calibrated probabilities, the most likely first.

    ``accepted``: the score reaches the gate's threshold, or the prompt is clearly one of an added class.
    """

    classes: tuple[tuple[str, float], ...]
    score: float
    threshold: float
    accepted: bool
    mixture: Mixture

    def lines(self, policy: RoutingPolicy) -> list[str]:
        """Describe the classes, the gate and the mixture, one line each."""
        classes = ", ".join(f"{name} {probability:.3f}" for name, probability in self.classes)
        sign = ">=" if self.score >= self.threshold else "<"
        gate = f"score {self.score:.3f} {sign} {self.threshold:.3f} (routing.acceptance={policy.acceptance:g})"
        return [
            f"classes    {classes}",
            f"gate       {gate}: {self._gate_result(policy)}",
            f"mixture    {self._mixture_reason(policy)}",
        ]

    def _gate_result(self, policy: RoutingPolicy) -> str:
        if not policy.gate:
            return "off (routing.gate=false)"
        if self.accepted:
            return (
                "in domain" if self.score >= self.threshold else "in domain, close to an adapter that was added later"
            )
        return "out of domain"

    def _mixture_reason(self, policy: RoutingPolicy) -> str:
        if policy.gate and not self.accepted:
            return f"{self.mixture.key}  (fallback: {policy.fallback_name})"
        if policy.max_adapters == 0:
            return "base  (routing.max_adapters=0)"
        chosen = f"the fewest classes that reach routing.top_p={policy.top_p:g}, at most {policy.max_adapters}"
        return f"{self.mixture.key}  ({chosen}; weights in 1/{policy.weight_steps})"


@torch.inference_mode()
def explain(
    router: Router, prompts: Sequence[Sequence[int]], policy: RoutingPolicy, max_classes: int = 5
) -> list[Explanation]:
    """Explain each prompt (token ids, at least one each), with the mixture that `Router.route` gives it."""
    if not prompts:
        return []
    found = router.classify(prompts, policy.acceptance)
    top = found.probabilities.sort(dim=1, descending=True, stable=True)
    threshold = router.threshold(policy.acceptance)
    return [
        Explanation(tuple(zip(labels, probabilities, strict=True)), score, threshold, accepted, route.mixture)
        for labels, probabilities, score, accepted, route in zip(
            ([router.labels[c] for c in row] for row in top.indices[:, :max_classes].tolist()),
            top.values[:, :max_classes].tolist(),
            found.scores.float().tolist(),
            found.accepted.tolist(),
            router.route(prompts, policy),
            strict=True,
        )
    ]
