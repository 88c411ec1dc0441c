"""Forward passes of a model with fused adapters over tokens of many sequences."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.adapters import AdapterBank
from pipeline.records import Mixture

from .attention.hook import PackedAttention
from .attention.packed import PackedStep
from .attention.segment import Segment
from .lora.operator import FusedLora
from .settings import LoraSettings


class ModelRunner:
    """Runs a model with the fused operator and the attention over slots, one pass at a time.

    ``before_pass`` is called at the start of every pass, in its thread. ``lock`` is held during a pass.
    """

    def __init__(self, model: Any, bank: AdapterBank, settings: LoraSettings) -> None:
        self.device: torch.device = model.device
        self.attention = PackedAttention(model)
        self.lora = FusedLora(model, bank, settings)
        self.lock = threading.Lock()
        self.before_pass: Callable[[], None] = lambda: None
        self._token_mixtures: tuple[list[Mixture], list[int], list[int], bool] | None = None

    def forward(self, segments: Sequence[Segment], expected_tokens: int = 0) -> tuple[list[Segment], torch.Tensor]:
        """Run one pass: return the segments in packed order, and the logits [kept tokens x vocab].

        ``expected_tokens``: number of tokens that will run with the same single mixture, as far as is known; 0 if there
        are several mixtures. May be called from several threads.
        """
        self.before_pass()
        packed = PackedStep(segments, self.attention.layers, self.device, self.attention.flash)
        with self.lock:
            self._set_segment_mixtures(packed, expected_tokens)
            logits = self.attention.forward(packed, packed.ids, packed.positions, packed.kept)
        packed.finish()
        return packed.segments, logits

    def set_token_mixtures(
        self, mixtures: list[Mixture], indices: list[int], kept: list[int], expected_tokens: int, union: bool = False
    ) -> None:
        """Set the mixture of every packed token, unless they are those of the last pass, as in most decode steps.

        Call with ``lock`` held. ``indices``: index in ``mixtures`` for each token. The others as in
        `FusedLora.set_tokens`.
        """
        token_mixtures = (mixtures, indices, kept, union)
        if self._token_mixtures != token_mixtures:
            self.lora.set_tokens(
                mixtures, torch.tensor(indices), torch.tensor(kept, dtype=torch.long), expected_tokens, union
            )
            self._token_mixtures = token_mixtures

    def _set_segment_mixtures(self, packed: PackedStep, expected_tokens: int) -> None:
        distinct: dict[Mixture, int] = {}
        indices: list[int] = []
        for segment in packed.segments:
            ends = [*(start for start, _ in segment.spans[1:]), len(segment.tokens)]
            for (start, mixture), end in zip(segment.spans, ends, strict=True):
                indices += [distinct.setdefault(mixture, len(distinct))] * (end - start)
        self.set_token_mixtures(list(distinct), indices, packed.kept_indices, expected_tokens)
