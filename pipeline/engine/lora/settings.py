"""How the fused operator works; none of it changes what it computes, but for the rounding of its sums."""

from dataclasses import dataclass
from typing import Literal

LoraMode = Literal["auto", "union", "gather", "merged"]


@dataclass(frozen=True)
class LoraSettings:
    """``mode``: one form for all batches, or ``auto``: the cheapest for each (`cost`).

    ``merged`` holds where all rows have one mixture and the weights can be merged; other batches go as in ``auto``.
    ``adapter_slots``: adapters kept packed on the device, least recently used first out; 0: all of them. A batch that
    needs more gets them, and the device is back within its slots with the next one that needs fewer.
    """

    mode: LoraMode = "auto"
    adapter_slots: int = 0
