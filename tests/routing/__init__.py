"""A synthetic task that a router learns at once: each label has words of its own among common ones."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.routing.mlp_router import MlpRouter
from pipeline.routing.training import RouterSettings, train_router

VOCABULARY = 60
LABELS = ("art", "legal", "med")
SETTINGS = RouterSettings(epochs=4, batch_size=64, learning_rate=2e-3, held_out=0.1, forms=0, examples=64, seed=0)
CARD = {"tokenizer_fingerprint": "tok1", "prompt_format": "chat"}


def make_prompts(count: int, seed: int = 0) -> tuple[list[list[int]], list[str]]:
    """Prompts of 3 to 30 tokens and their labels. Tokens 0-9 are common, each label has ten of its own."""
    generator = random.Random(seed)
    labels = [generator.choice(LABELS) for _ in range(count)]
    return [_prompt(LABELS.index(label), generator) for label in labels], labels


def _prompt(label: int, generator: random.Random) -> list[int]:
    own = [generator.randrange(10 * label + 10, 10 * label + 20) for _ in range(generator.randint(2, 20))]
    prompt = own + [generator.randrange(10) for _ in range(generator.randint(1, 10))]
    generator.shuffle(prompt)
    return prompt


def make_router(seed: int = 0, count: int = 400, **settings: float) -> MlpRouter:
    """A router trained for the synthetic task; its prompts are written as numbers."""
    torch.set_num_threads(1)  # several times faster than two for so small a network
    prompts, labels = make_prompts(count, seed=1)
    changed: Any = {"epochs": 20, "seed": seed} | settings
    return train_router(written(prompts), labels, encode, VOCABULARY, replace(SETTINGS, **changed), dict(CARD), _silent)


def written(prompts: Sequence[Sequence[int]]) -> list[str]:
    """Prompts as texts: the numbers of their tokens."""
    return [" ".join(map(str, prompt)) for prompt in prompts]


def encode(texts: Sequence[str]) -> list[list[int]]:
    """The tokenizer of these texts."""
    return [[int(word) for word in text.split()] for text in texts]


def _silent(line: str) -> None:
    pass
