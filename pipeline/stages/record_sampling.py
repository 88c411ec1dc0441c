"""The sampling settings of each record: those of the job, with what the record overrides."""

from functools import lru_cache

import orjson

from pipeline.engine import Sampling, overridden

_KEPT = 4096  # parsed settings; most records share theirs with many
_LONGEST_KEPT = 4096  # characters: what one record alone has of schemas or choices must not fill the memory


class RecordSampling:
    """Settings by the text of the column `sampling` of `records.STAGED`."""

    def __init__(self, base: Sampling) -> None:
        self._base = base
        self._parsed = lru_cache(_KEPT)(self._parse)

    def __call__(self, text: str | None) -> Sampling:
        """Settings of a record; `ValueError` with one line where they are wrong."""
        if text is None:
            return self._base
        return self._parsed(text) if len(text) <= _LONGEST_KEPT else self._parse(text)

    def _parse(self, text: str) -> Sampling:
        return overridden(self._base, orjson.loads(text))
