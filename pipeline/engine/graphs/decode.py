"""Record decode steps, and replay them with new inputs."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.engine.attention.segment import Segment
from pipeline.engine.lora.forms import Union
from pipeline.engine.model_runner import ModelRunner
from pipeline.records import Mixture

from .record import Recorder, Recording
from .step import Shape, StaticStep, static_shape

_RUNS_BEFORE_RECORDING = 3  # of a shape: recording costs about two passes
_MAX_RECORDED = 32

_Key = tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, torch.dtype] | None, ...]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RecordedStep:
    """``forms``: the operator's forms in the recording; a replay reads the memory of their rank weights."""

    step: StaticStep
    shape: Shape
    forms: list[Union | None]
    recording: Recording


class DecodeGraphs:
    """Replays the decode steps of one generation loop; other steps, and new shapes, run in the model runner.

    A step is recorded for its lanes and the operator's panels, because it reads their memory. Mixtures change only the
    rank weights, which are copied into the recording's own. So the operator computes in its union form, as gathering
    arranges rows on the host, or merged: merging writes the weights in place.
    """

    def __init__(self, runner: ModelRunner, recorder: Recorder) -> None:
        self._runner, self._recorder = runner, recorder
        self._recorded: OrderedDict[_Key, _RecordedStep] = OrderedDict()
        self._runs: Counter[_Key] = Counter()
        self._has_failed = False

    @property
    def can_record(self) -> bool:
        """Whether decode steps can be recorded: the bank allows it, and recording has not failed."""
        return not self._has_failed and self._runner.lora.can_stay_union

    def forward(self, segments: Sequence[Segment], expected_tokens: int) -> tuple[list[Segment], torch.Tensor]:
        """Run one pass as `ModelRunner.forward` does, replayed if it is recorded."""
        shape = static_shape(segments) if self.can_record else None
        if shape is None:
            return self._runner.forward(segments, expected_tokens)
        self._runner.before_pass()
        with self._runner.lock:
            step = StaticStep(shape, self._runner.attention.layers, self._runner.device)
            indices = [step.index_of(segment) for segment in segments]
            forms = self._set_mixtures(step.num_tokens, indices, segments, expected_tokens)
            recorded = self._find(shape, step, segments, forms)
            if recorded is not None:
                self._replay(recorded, segments, forms)
                logits = recorded.recording.output[torch.tensor(indices, device=step.kept.device)]
                for segment in segments:
                    segment.slot.length = max(segment.slot.length, segment.start + 1)
                return [*segments], logits
        return self._runner.forward(segments, expected_tokens)

    def _set_mixtures(
        self, num_tokens: int, indices: Sequence[int], segments: Sequence[Segment], expected_tokens: int
    ) -> list[Union | None]:
        # Free slots run too: with the one mixture of all sequences, which may be merged, or else as the base model.
        mixtures = [segments[0].spans[0][1] if expected_tokens else Mixture()] * num_tokens
        for index, segment in zip(indices, segments, strict=True):
            mixtures[index] = segment.spans[0][1]
        distinct = {mixture: index for index, mixture in enumerate(dict.fromkeys(mixtures))}
        of_tokens = [distinct[mixture] for mixture in mixtures]
        self._runner.set_token_mixtures([*distinct], of_tokens, [*range(num_tokens)], expected_tokens, union=True)
        return self._runner.lora.union_forms

    def _find(
        self, shape: Shape, step: StaticStep, segments: Sequence[Segment], forms: list[Union | None]
    ) -> _RecordedStep | None:
        """Find the recording of a step, or record it if it has run often enough."""
        lanes = tuple((lane.capacity, lane.generation, slot_count) for lane, slot_count in shape)
        key = (lanes, tuple(None if form is None else (id(form.panel), form.weights.dtype) for form in forms))
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]
        self._runs[key] += 1
        if self._runs[key] < _RUNS_BEFORE_RECORDING:
            return None
        self._runs.clear()
        self._evict(forms)
        step.fill(segments)

        def run() -> torch.Tensor:
            step.start_pass()
            return self._runner.attention.forward(step, step.ids, step.positions, step.kept)

        try:
            recording = self._recorder(run)
        except RuntimeError as error:
            self._has_failed = True
            _log.warning("engine: decode steps run without CUDA graphs: %s", str(error).splitlines()[0])
            return None
        self._recorded[key] = _RecordedStep(step, shape, forms, recording)
        return self._recorded[key]

    def _replay(self, recorded: _RecordedStep, segments: Sequence[Segment], forms: list[Union | None]) -> None:
        recorded.step.fill(segments)
        for held, current in zip(recorded.forms, forms, strict=True):
            if held is not None and current is not None and held is not current:
                held.reweight(current.weights)
        recorded.recording.replay()

    def _evict(self, forms: list[Union | None]) -> None:
        """Drop recordings whose lanes or panels no longer exist, and the oldest above the maximum."""
        panels = {id(form.panel) for form in forms if form is not None}
        for key, old in list(self._recorded.items()):
            is_reallocated = [lane.generation for lane, _ in old.shape] != [generation for _, generation, _ in key[0]]
            if is_reallocated or any(form is not None and id(form.panel) not in panels for form in old.forms):
                del self._recorded[key]
        while len(self._recorded) >= _MAX_RECORDED:
            self._recorded.popitem(last=False)
