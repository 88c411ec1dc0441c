"""Percentile bootstrap (Efron 1979) over records: how much a figure would vary on other records of the same kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_CELLS = 2**22  # of a block of draws, 32 MiB


@dataclass(frozen=True)
class BootstrapSettings:
    """``resamples``: number of samples drawn from the records, with replacement."""

    resamples: int
    seed: int


def resampled(statistics: Floats, value: Callable[[Floats], Floats], settings: BootstrapSettings, group: str) -> Floats:
    """Return the figure [resamples] of each resample of the records.

    ``statistics`` [records x k] are summed over a resample; ``value``: from sums [m x k] to figures [m]. Draws depend
    on the seed, on ``group`` and on the number of records: configurations that answered the same records get the same
    draws, groups get independent ones.
    """
    records, figures = len(statistics), []
    rows = max(1, min(settings.resamples, _CELLS // records))
    for start in range(0, settings.resamples, rows):
        draws = _draws(records, min(rows, settings.resamples - start), start, settings.seed, group)
        figures.append(value(draws @ statistics))
    return np.concatenate(figures)


def interval(samples: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled figures."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


# The metrics and configurations of a group follow each other and use the same draws.
@lru_cache(maxsize=2)
def _draws(records: int, rows: int, start: int, seed: int, group: str) -> Floats:
    """Return the number of times each record is drawn [rows x records], a block of resamples that bounds memory."""
    generator = np.random.default_rng([seed, start, *group.encode()])
    return generator.multinomial(records, np.full(records, 1 / records), size=rows).astype(np.float64)
