"""The networks of routers: a bag of the base model's own token ids, then four linear layers or centroids."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn
from torch.nn.functional import normalize


@dataclass(frozen=True)
class RouterShape:
    """Sizes of the network; with a vocabulary of 49,152 it has about 4.9 M parameters (the paper: 5 M)."""

    vocab_size: int
    classes: int
    embedding: int = 96
    hidden: int = 256
    features: int = 128


@dataclass(frozen=True)
class CentroidShape:
    """Sizes of the network of a centroid router."""

    vocab_size: int
    classes: int
    embedding: int


class TokenBag(nn.Module):
    """A network over the mean token embedding of a prompt: token ids -> [n x E] -> class logits [n x classes].

    It reads the base model's token ids, so that a prompt is tokenised once for router and engine.
    """

    def __init__(self, shape: RouterShape | CentroidShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.EmbeddingBag(shape.vocab_size, shape.embedding, mode="mean")

    @classmethod
    @abstractmethod
    def of(cls, sizes: dict[str, int]) -> Self:
        """Create it from the ``shape`` of ``router.json``."""

    @abstractmethod
    def classify(self, embedded: torch.Tensor) -> torch.Tensor:
        """Class logits [n x classes] of mean embeddings [n x E]."""

    def embed(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Mean token embeddings [n x E] of n prompts: flat ``ids``, and the ``offsets`` [n] where each starts."""
        embedded: torch.Tensor = self.embedding(ids, offsets)
        return embedded

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Class logits [n x classes]."""
        return self.classify(self.embed(ids, offsets))


class RouterNetwork(TokenBag):
    """Class logits by four linear layers, as in the paper."""

    def __init__(self, shape: RouterShape) -> None:
        super().__init__(shape)
        # Small, so that tokens never trained on weigh little: with torch's unit variance they look like evidence.
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.body = nn.Sequential(
            nn.Linear(shape.embedding, shape.hidden),
            nn.ReLU(),
            nn.Linear(shape.hidden, shape.hidden),
            nn.ReLU(),
            nn.Linear(shape.hidden, shape.features),
            nn.ReLU(),
        )
        self.head = nn.Linear(shape.features, shape.classes)

    @classmethod
    def of(cls, sizes: dict[str, int]) -> Self:
        """See `TokenBag.of`."""
        return cls(RouterShape(**sizes))

    def classify(self, embedded: torch.Tensor) -> torch.Tensor:
        """See `TokenBag.classify`."""
        logits: torch.Tensor = self.head(self.body(embedded))
        return logits


class CentroidNetwork(TokenBag):
    """Class logits by the cosines to the classes' centroids, scaled."""

    SCALE: ClassVar = 20.0  # of the logits, so that the fitted temperature is near 1

    def __init__(self, shape: CentroidShape) -> None:
        super().__init__(shape)
        self.centroids = nn.Parameter(torch.empty(shape.classes, shape.embedding))

    @classmethod
    def of(cls, sizes: dict[str, int]) -> Self:
        """See `TokenBag.of`."""
        return cls(CentroidShape(**sizes))

    def classify(self, embedded: torch.Tensor) -> torch.Tensor:
        """See `TokenBag.classify`."""
        return normalize(embedded, dim=1) @ normalize(self.centroids, dim=1).T * self.SCALE


def flatten_prompts(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat ids and offsets of some prompts, as `TokenBag` takes them."""
    lengths = torch.tensor([0, *map(len, prompts)])
    ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.long)
    return ids, lengths.cumsum(0)[:-1]
