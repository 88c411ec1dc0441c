"""One forward pass over tokens of many rows, laid end to end: [1 x tokens], no padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.records import Spans

from .flash import PromptPart, end_to_end
from .slots import Lane, Slot

_ROUND = 32  # lengths of a decode step are rounded up to it: kernels are prepared for fewer shapes


@dataclass(frozen=True)
class Options:
    """How a layer attends; as transformers hands it to an attention function."""

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """Tokens of one row that run in one pass.

    ``begin``: place in the slot of their first; ``kept``: those whose logits are wanted, counted from the first.
    ``spans``: their mixtures. Where tokens are branches (several continuations of one text in one slot), ``positions``
    are theirs in the text, and ``sees`` [tokens x tokens] says which of these tokens each one attends to.
    """

    slot: Slot
    tokens: Sequence[int]
    begin: int
    spans: Spans
    kept: Sequence[int] = ()
    positions: Sequence[int] | None = None
    sees: torch.Tensor | None = None


class PackedStep:
    """Inputs of the pass, and the attention of its tokens to the slots of their rows.

    Rows with one token come first, lane by lane in the order of their slots: all rows of a lane attend in one call.
    ``segments`` are in the order of the packed tokens, and so are logits. ``flash``: prompts attend in one call too,
    those with branches aside (`flash.is_flash`).
    """

    def __init__(
        self, segments: Sequence[Segment], layers: dict[int, int], device: torch.device, flash: bool = False
    ) -> None:
        single = [s for s in segments if len(s.tokens) == 1 and s.positions is None]
        single.sort(key=lambda s: (s.slot.lane.capacity, s.slot.index))
        chunks = [s for s in segments if len(s.tokens) > 1 or s.positions is not None]
        together = [s for s in chunks if flash and s.positions is None]
        together.sort(key=lambda s: s.slot.lane.capacity)
        apart = [s for s in chunks if not flash or s.positions is not None]
        self.segments = single + together + apart
        self.layers = layers
        self.parts: list[LanePart | PromptPart | _Chunk] = []
        start = 0
        for _, group in groupby(single, key=lambda s: id(s.slot.lane)):
            part = LanePart.of(start, list(group), device)
            self.parts.append(part)
            start = part.stop
        if together:
            self.parts.append(PromptPart(start, together, device))
            start = self.parts[-1].stop
        for segment in apart:
            self.parts.append(_Chunk(start, segment, device))
            start = self.parts[-1].stop
        begins = accumulate((len(s.tokens) for s in self.segments), initial=0)
        kept = [begin + place for begin, s in zip(begins, self.segments, strict=False) for place in s.kept]
        ids = [token for s in self.segments for token in s.tokens]
        positions = [p for s in self.segments for p in s.positions or range(s.begin, s.begin + len(s.tokens))]
        self.ids, self.positions = torch.tensor([[ids], [positions]], device=device)
        self.kept_places = kept
        self.kept = torch.tensor(kept, dtype=torch.long, device=device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write the new keys and values [1 x heads x tokens x dim], and attend: [1 x tokens x query heads x dim]."""
        place = self.layers[layer]
        parts = [part.attend(place, query[0], key[0], value[0], options) for part in self.parts]
        return end_to_end(parts).unsqueeze(0)

    def finish(self) -> None:
        """Note what was written. A pass that raises leaves the rows as they were."""
        for segment in self.segments:
            segment.slot.length = max(segment.slot.length, segment.begin + len(segment.tokens))


@dataclass(eq=False)
class LanePart:
    """Rows of one lane with one token each: they attend in one call, each row a batch entry.

    The query heads that share keys stand as queries of one head, so that keys and values are read once and never
    repeated. Slots of other rows between them run along, and what comes of them is dropped.

    ``start`` and ``stop`` in the packed tokens; ``slots`` [stop - start] of the rows, rising, and ``places`` of their
    tokens in them; ``rows``: slots that run; ``length``: positions of them that are read.
    """

    lane: Lane
    start: int
    stop: int
    slots: torch.Tensor
    places: torch.Tensor
    rows: int
    length: int
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, start: int, segments: Sequence[Segment], device: torch.device) -> "LanePart":
        """The rows of some segments of one lane, in the order of their slots."""
        lane, slots = segments[0].slot.lane, [s.slot.index for s in segments]
        longest = max(s.begin for s in segments) + 1
        return cls(
            lane,
            start,
            start + len(segments),
            torch.tensor(slots, device=device),
            torch.tensor([s.begin for s in segments], device=device),
            slots[-1] + 1,
            min(-(-longest // _ROUND) * _ROUND, lane.capacity),
        )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write and attend: [rows x query heads x dim] of all packed queries, keys and values [heads x tokens x dim].

        Reads nothing back to the host, and of ``places`` only its memory: it can be recorded (`graphs`).
        """
        keys, values = self.lane.buffers[layer]
        keys[self.slots, :, self.places] = key[:, self.start : self.stop].transpose(0, 1)
        values[self.slots, :, self.places] = value[:, self.start : self.stop].transpose(0, 1)
        heads = query.shape[0]
        asked = query[:, self.start : self.stop].transpose(0, 1)
        asked = asked.reshape(len(asked), keys.shape[1], heads // keys.shape[1], -1)
        if self.rows > len(asked):
            asked = asked.new_zeros(self.rows, *asked.shape[1:]).index_copy_(0, self.slots, asked)
        mask = self._mask(options.window, query)
        found = _attention(
            asked, keys[: self.rows, :, : self.length], values[: self.rows, :, : self.length], mask, options
        )
        if self.rows > self.stop - self.start:
            found = found[self.slots]
        return found.reshape(len(found), heads, -1)

    def _mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """[rows x 1 x 1 x length]: 0 up to the row's own token and within the window, -inf elsewhere."""
        if window not in self._masks:
            places = torch.arange(self.length, device=like.device)
            own = self.places.unsqueeze(1)
            hidden = places > own
            if window is not None:
                hidden |= places <= own - window
            # Slots between them see all of theirs: a row that sees nothing would be NaN.
            mask = like.new_zeros(self.rows, self.length)
            mask[self.slots] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


class _Chunk:
    """Tokens of one row that follow each other (or branch): a causal piece of its prompt."""

    def __init__(self, start: int, segment: Segment, device: torch.device) -> None:
        self.segment = segment
        self.start, self.stop = start, start + len(segment.tokens)
        self.begin, self.end = segment.begin, segment.begin + len(segment.tokens)
        self.device = device
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        slot = self.segment.slot
        keys, values = (held[slot.index, :, : self.end] for held in slot.lane.buffers[layer])
        keys[:, self.begin :] = key[:, self.start : self.stop]
        values[:, self.begin :] = value[:, self.start : self.stop]
        heads, kept = query.shape[0], keys.shape[0]
        asked = query[:, self.start : self.stop].reshape(kept, heads // kept, self.stop - self.start, -1)
        # Heads that share keys: a view that repeats them, not a copy.
        keys, values = (held.unsqueeze(1).expand(-1, heads // kept, -1, -1) for held in (keys, values))
        found = _attention(asked, keys, values, self._mask(options.window, query), options)
        return found.reshape(heads, self.stop - self.start, -1).transpose(0, 1)

    def _mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """[tokens x end]: additive; None where the tokens are a whole prompt that the causal flag covers."""
        if self.begin == 0 and self.segment.sees is None and (window is None or window >= self.end):
            return None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window).to(like)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> torch.Tensor:
        positions = self.segment.positions or range(self.begin, self.end)
        own = torch.tensor([*positions], device=self.device)
        places = torch.cat([torch.arange(self.begin, device=self.device), own])
        shown = places <= own.unsqueeze(1)
        if self.segment.sees is not None:
            shown[:, self.begin :] = self.segment.sees.to(self.device)
        if window is not None:
            shown &= places > own.unsqueeze(1) - window
        return torch.zeros(shown.shape, device=self.device).masked_fill_(~shown, float("-inf"))


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    """Attention [.. x heads x queries x dim] with an additive mask; without one it is causal."""
    if options.softcap is None:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=options.scale
        )
    # No fused kernel caps scores (Gemma 2, arXiv 2408.00118); scores are computed as the eager form of transformers.
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.tanh(query @ keys.transpose(-1, -2) * scale / options.softcap) * options.softcap
    if mask is None:
        length = keys.shape[-2]
        mask = torch.full((length, length), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return (scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype) @ values
