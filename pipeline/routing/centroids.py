"""Classes added without retraining, each known by the centroid of a few example prompts."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

# Cosine that changes the odds of an added class by e. Centroids of the suite's tasks are 0.1 to 0.6 apart.
_SCALE = 0.02


@dataclass(frozen=True)
class CentroidHead:
    """Centroids of the trained classes [classes x E] and of the added ones [added x E], unit vectors.

    The odds of an added class against all trained ones grow with its lead: how much nearer its centroid is to the
    prompt than the nearest centroid of a trained class, less a margin. The trained classes share the rest in the same
    proportions as before. ``floors`` are the cosines to its centroid that an added class's prompts reach: these prompts
    are less alike than those that embeddings were trained on, and would not pass the gate.
    """

    trained: torch.Tensor
    added: torch.Tensor
    margins: torch.Tensor  # [added]
    floors: torch.Tensor  # [added]

    @staticmethod
    def of(trained: torch.Tensor) -> "CentroidHead":
        """Create the head of a router without added classes."""
        none = trained.new_empty(0, trained.shape[1])
        return CentroidHead(trained, none, none[:, 0], none[:, 0])

    def to(self, dtype: torch.dtype) -> "CentroidHead":
        """Convert all tensors to another dtype."""
        return CentroidHead(*(tensor.to(dtype) for tensor in vars(self).values()))

    def probabilities(self, embedded: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
        """Probabilities [n x (classes + added)] from mean embeddings [n x E] and ``trained`` ones [n x classes]."""
        if not len(self.added):
            return trained
        odds = (self._lead(embedded, self.added) - self.margins) / _SCALE
        shares = torch.cat([torch.zeros_like(odds[:, :1]), odds], dim=1).softmax(1)
        return torch.cat([trained * shares[:, :1], shares[:, 1:]], dim=1)

    def with_class(self, examples: torch.Tensor, held_out: torch.Tensor, false_claim: float) -> "CentroidHead":
        """Add a class from mean embeddings [n x E] of its examples.

        Its margin is set so that it takes the share ``false_claim`` of the trained classes' ``held_out`` prompts.
        """
        new = centroid(examples).unsqueeze(0)
        margin = self._lead(held_out, new).quantile(1 - false_claim).clamp(min=0)
        return CentroidHead(
            self.trained,
            torch.cat([self.added, new]),
            torch.cat([self.margins, margin.view(1)]),
            torch.cat([self.floors, _floor(normalize(examples, dim=1)).view(1)]),
        )

    def accepts(self, embedded: torch.Tensor) -> torch.Tensor:
        """Whether each prompt [n] is nearest to the centroid of an added class, and as near to it as its examples."""
        if not len(self.added):
            return torch.zeros(len(embedded), dtype=torch.bool)
        near = normalize(embedded, dim=1) @ self.added.T >= self.floors
        return (near & (self._lead(embedded, self.added) > self.margins)).any(1)

    def _lead(self, embedded: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        """Cosine to each of ``centroids`` less the cosine to the nearest trained one [n x centroids]."""
        unit = normalize(embedded, dim=1)
        nearest: torch.Tensor = (unit @ self.trained.T).amax(1, keepdim=True)
        return unit @ centroids.T - nearest


def centroid(examples: torch.Tensor) -> torch.Tensor:
    """Direction [E] of the mean of unit vectors of ``examples`` [n x E]."""
    return normalize(normalize(examples, dim=1).mean(0), dim=0)


def _floor(unit: torch.Tensor) -> torch.Tensor:
    """Three standard deviations below the mean cosine of examples [n x E] to the centroid of the others."""
    others = normalize(unit.sum(0) - unit, dim=1)
    cosines = (unit * others).sum(1)
    return cosines.mean() - 3 * cosines.std()
