"""Labelled examples as token ids, and the training batches made of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models import PromptFormat

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its answer, which ends with the end-of-sequence token."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode_examples(rows: Sequence[dict[str, Any]], prompts: PromptFormat, max_tokens: int) -> list[Example]:
    """Tokenise rows with ``prompt`` and ``answer``; leave out examples longer than ``max_tokens``."""
    questions = prompts.encode([row["prompt"] for row in rows])
    answers = prompts.encode_answer([row["answer"] for row in rows])
    examples = [Example(p, a) for p, a in zip(questions, answers, strict=True)]
    return [example for example in examples if len(example) <= max_tokens]


def split_validation(
    examples: Sequence[Example], share: float, max_examples: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Shuffle by ``seed`` and split off a validation set: ``share`` of the examples, ``max_examples`` at most."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    held_out = min(max_examples, max(1, round(share * len(order))))
    return order[held_out:], order[:held_out]


def epochs(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Yield batches without end: each epoch is a new shuffle, and no batch spans two epochs."""
    rng = random.Random(seed)
    while True:
        order = list(examples)
        rng.shuffle(order)
        for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
            yield order[start : start + batch_size]


def collate(batch: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Pad to ``input_ids, attention_mask, labels`` [batch x longest]; only answer tokens have labels."""
    longest = max(len(example) for example in batch)
    ids = torch.full((len(batch), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, example in enumerate(batch):
        end, start = len(example), len(example.prompt)
        ids[row, :end] = torch.tensor(example.prompt + example.answer)
        mask[row, :end] = 1
        labels[row, start:end] = ids[row, start:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
