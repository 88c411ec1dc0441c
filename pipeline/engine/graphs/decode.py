"""Which decode steps are recorded, and how their inputs change between replays."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.engine.attention.packed import Segment
from pipeline.engine.lora.forms import Union
from pipeline.records import Mixture

from .record import Recorder, Recording
from .step import Shape, StaticStep, static_shape

if TYPE_CHECKING:
    from pipeline.engine.core.engine import Engine

_SEEN = 3  # times that a shape runs before it is recorded: recording costs about two passes
_MOST = 32  # recordings at a time

_Key = tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, torch.dtype] | None, ...]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recorded:
    """``forms``: what the operator computed with; its rank weights are memory that a replay reads."""

    step: StaticStep
    shape: Shape
    generations: tuple[int, ...]
    forms: list[Union | None]
    recording: Recording


class DecodeGraphs:
    """Replays the decode steps of one session; other steps, and new shapes, go through the engine as they are.

    A step is recorded for its lanes and the operator's panels, as these are memory that it reads. Mixtures change only
    the rank weights, which are copied into the recording's own. So the operator computes in its union form, as
    gathering arranges rows on the host, or merged: merging writes the weights in place.
    """

    def __init__(self, engine: "Engine", recorder: Recorder) -> None:
        self.replays = 0
        self._engine, self._recorder = engine, recorder
        self._recorded: OrderedDict[_Key, _Recorded] = OrderedDict()
        self._seen: Counter[_Key] = Counter()
        self._broken = False

    @property
    def records(self) -> bool:
        """Whether decode steps are recorded: not where the bank does not let them be, or where it failed."""
        return not self._broken and self._engine.lora.can_stay_union

    def forward(self, segments: Sequence[Segment], expected_tokens: int) -> tuple[list[Segment], torch.Tensor]:
        """As `Engine.forward`."""
        shape = static_shape(segments) if self.records else None
        if shape is None:
            return self._engine.forward(segments, expected_tokens)
        self._engine.before_pass()
        with self._engine.lock:
            step = StaticStep(shape, self._engine.attention.layers, self._engine.model.device)
            places = [step.place(segment) for segment in segments]
            forms = self._set_mixtures(step.tokens, places, segments, expected_tokens)
            recorded = self._find(shape, step, segments, forms)
            if recorded is not None:
                self._replay(recorded, segments, forms)
                logits = recorded.recording.output[torch.tensor(places, device=step.kept.device)]
                for segment in segments:
                    segment.slot.length = max(segment.slot.length, segment.begin + 1)
                return [*segments], logits
        return self._engine.forward(segments, expected_tokens)

    def _set_mixtures(
        self, tokens: int, places: Sequence[int], segments: Sequence[Segment], expected_tokens: int
    ) -> list[Union | None]:
        # Free slots run along: with the one mixture of all rows, which may be merged, or else as the base model.
        mixtures = [segments[0].spans[0][1] if expected_tokens else Mixture()] * tokens
        for place, segment in zip(places, segments, strict=True):
            mixtures[place] = segment.spans[0][1]
        numbers = {mixture: number for number, mixture in enumerate(dict.fromkeys(mixtures))}
        chosen = [numbers[mixture] for mixture in mixtures]
        self._engine.set_mixtures([*numbers], chosen, [*range(tokens)], expected_tokens, union=True)
        return self._engine.lora.union_forms

    def _find(
        self, shape: Shape, step: StaticStep, segments: Sequence[Segment], forms: list[Union | None]
    ) -> _Recorded | None:
        lanes = tuple((lane.capacity, lane.generation, rows) for lane, rows in shape)
        key = (lanes, tuple(None if form is None else (id(form.panel), form.weights.dtype) for form in forms))
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]
        self._seen[key] += 1
        if self._seen[key] < _SEEN:
            return None
        self._seen.clear()
        self._drop(forms)
        step.fill(segments)
        try:
            recording = self._recorder(lambda: self._pass(step))
        except RuntimeError as error:
            self._broken = True
            _log.warning("engine: decode steps run without CUDA graphs: %s", str(error).splitlines()[0])
            return None
        generations = tuple(lane.generation for lane, _ in shape)
        self._recorded[key] = _Recorded(step, shape, generations, forms, recording)
        return self._recorded[key]

    def _pass(self, step: StaticStep) -> torch.Tensor:
        return self._engine.attention.run(step.begin(), step.ids, step.positions, step.kept)

    def _replay(self, recorded: _Recorded, segments: Sequence[Segment], forms: list[Union | None]) -> None:
        recorded.step.fill(segments)
        for held, now in zip(recorded.forms, forms, strict=True):
            if held is not None and now is not None and held is not now:
                held.reweight(now.weights)
        recorded.recording.replay()
        self.replays += 1

    def _drop(self, forms: list[Union | None]) -> None:
        """Drop recordings whose lanes or panels have gone, and the oldest beyond the most."""
        panels = {id(form.panel) for form in forms if form is not None}
        for key, old in list(self._recorded.items()):
            gone = tuple(lane.generation for lane, _ in old.shape) != old.generations
            if gone or any(form is not None and id(form.panel) not in panels for form in old.forms):
                del self._recorded[key]
        while len(self._recorded) >= _MOST:
            self._recorded.popitem(last=False)
