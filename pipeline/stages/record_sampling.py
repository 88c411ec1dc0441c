"""Sampling settings of each record: the settings of the job, with the record's own on top."""

from functools import lru_cache

from pipeline.engine import Sampling, override_sampling
from pipeline.exact_json import loads

_CACHED_SETTINGS = 4096  # parsed settings; most records share theirs with many others
_MAX_CACHED_LENGTH = 4096  # characters: long schemas or choices of single records must not fill the memory


class RecordSampling:
    """Parses the column `sampling` of `records.STAGED`."""

    def __init__(self, base: Sampling) -> None:
        self._base = base
        self._parsed = lru_cache(_CACHED_SETTINGS)(self._parse)

    def __call__(self, text: str | None) -> Sampling:
        """Return the settings of a record; raises `ValueError` with one line if they are wrong."""
        if text is None:
            return self._base
        return self._parsed(text) if len(text) <= _MAX_CACHED_LENGTH else self._parse(text)

    def _parse(self, text: str) -> Sampling:
        return override_sampling(self._base, loads(text))
