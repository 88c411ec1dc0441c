"""The numbers of a run for its report: from `run.json`, which the markers were added up in, never from all rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.records import Mixture
from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.output.run import RUN, run_values
from pipeline.storage.store.redact import masked

_ADAPTERS = 24  # of the heat map
_STRETCHES = 120  # of a rate over time


@dataclass(frozen=True)
class Run:
    """What `run.json` says. ``values``: all of it; ``counts``: of committed rows."""

    url: str
    values: dict[str, Any]

    @staticmethod
    def read(url: str) -> "Run":
        """`UserError` where there is no run, or one that has not come to its first stop."""
        values = run_values(url)
        if values is None:
            raise UserError(f"run: there is no {RUN} at {masked(url)}; give the --output of a run")
        if "counts" not in values:
            raise UserError(f"run: {masked(url)} has not stopped yet; a report can be made when it has")
        return Run(masked(url), values)

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of all that is committed."""
        counts: dict[str, Any] = self.values["counts"]
        return counts

    def top_mixtures(self, most: int) -> list[tuple[str, int]]:
        """The most frequent mixtures."""
        return most_frequent(self.counts["mixtures"], most)

    @property
    def rare(self) -> int:
        """Answered records whose mixtures are too many to be counted one by one."""
        return int(self.counts.get("rare", 0))

    def distinct_mixtures(self) -> str:
        """How many mixtures there are, or more than which number."""
        return f"{'over ' if self.rare else ''}{len(self.counts['mixtures']):,}"

    def mean_adapters(self) -> float:
        """Adapters in the mixture of an answered record, on average; without those of ``rare``."""
        sizes = sum(len(Mixture.parse(key).adapters) * count for key, count in self.counts["mixtures"].items())
        return float(sizes / max(1, self.counts["data"] - self.rare))

    def together(self) -> tuple[list[str], np.ndarray]:
        """The most used adapters, and how many records two of them answered together [n x n].

        On the diagonal: how many an adapter answered alone.
        """
        used: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        for key, count in self.counts["mixtures"].items():
            adapters = Mixture.parse(key).adapters
            used.update(dict.fromkeys(adapters, count))
            pairs.update({(a, b): count for a in adapters for b in adapters if a != b or len(adapters) == 1})
        names = sorted(name for name, _ in used.most_common(_ADAPTERS))
        return names, np.array([[pairs[a, b] for b in names] for a in names], dtype=float)

    def rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Over time: seconds since the start [n + 1], and between them records and tokens a second [n]."""
        points = np.array([point[:4] for point in self.values.get("timeline", [])], dtype=float).reshape(-1, 4)
        if len(points) < 2:
            return np.zeros(1), np.zeros(0), np.zeros(0)
        points = points[np.unique(np.linspace(0, len(points) - 1, _STRETCHES).round().astype(int))]
        points = points[np.concatenate([[True], np.diff(points[:, 0]) > 0])]
        times, done = points[:, 0], points[:, 1] + points[:, 2]
        seconds = np.diff(times)
        return times - times[0], np.diff(done) / seconds, np.diff(points[:, 3]) / seconds

    def device_hours(self) -> float | None:
        """Hours of the generating actors' devices, start-up included; None where the run does not say."""
        seconds = self.values.get("devices", {}).get("device_seconds")
        return None if seconds is None else float(seconds) / 3600

    def price(self) -> tuple[float | None, str]:
        """Price of a device hour as configured, and its currency."""
        cost: Mapping[str, Any] = self.values["config"].get("cost", {})
        return cost.get("device_hour"), str(cost.get("currency", ""))


def readable(key: str) -> str:
    """A mixture's key for people: names as they are, no weight where there is one adapter."""
    mixture = Mixture.parse(key)
    if not mixture.adapters:
        return "base model alone"
    if len(mixture.adapters) == 1:
        return mixture.adapters[0]
    return " + ".join(f"{name} {weight:.3g}" for name, weight in zip(mixture.adapters, mixture.weights, strict=True))
