"""The numbers of a run for its report, from `run.json`, which holds the sums of the markers; no rows are read."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError, first_names
from pipeline.records import Mixture
from pipeline.storage.output.run import RUN, run_values
from pipeline.storage.store.redact import masked

_MAX_ADAPTERS = 24  # in the heat map
_MAX_POINTS = 120  # of a rate over time


@dataclass(frozen=True)
class RunSummary:
    """The content of a run's `run.json`, and figures computed from it."""

    url: str
    values: dict[str, Any]

    @staticmethod
    def read(url: str) -> "RunSummary":
        """Read the run at a URL; raise `UserError` if there is none, or if it has not stopped yet."""
        values = run_values(url)
        if values is None:
            raise UserError(f"run: there is no {RUN} at {masked(url)}; give the --output of a run")
        if "counts" not in values:
            raise UserError(f"run: {masked(url)} has not stopped yet; a report can be made when it has")
        return RunSummary(masked(url), values)

    @property
    def counts(self) -> dict[str, Any]:
        """Return the counts of committed rows."""
        counts: dict[str, Any] = self.values["counts"]
        return counts

    def parameters(self) -> dict[str, Any]:
        """Return the config and the fingerprints with dotted keys."""
        return flatten_config(self.values["config"]) | flatten_config(self.values["fingerprints"], "fingerprint")

    @property
    def rare(self) -> int:
        """Return the number of answered records with rare mixtures, which are not counted one by one."""
        return int(self.counts.get("rare", 0))

    def figures(self) -> dict[str, str]:
        """Return the figures that the report shows, formatted, by name."""
        counts, answered, hours = self.counts, max(1, self.counts["data"]), self.device_hours()
        fallback = self.values["config"].get("routing", {}).get("fallback", "base")
        unnamed = self.values.get("unnamed_adapters", [])
        last, policy = counts.get("last_assistant", 0), self.values["config"].get("model", {}).get("last_assistant")
        return {
            "records": f"{counts['records']:,}",
            "answered": f"{counts['data']:,}",
            "dead letters": f"{counts['dead']:,}",
            "missing": f"{counts['incomplete']:,}",
            "fallback": f"{counts['fallback'] / answered:.1%} ({fallback})",
            **({"last turn of the assistant": f"{last:,} ({policy})"} if last else {}),
            "distinct mixtures": f"{'over ' if self.rare else ''}{len(counts['mixtures']):,}",
            "adapters per mixture": f"{self.mean_adapters():.2f}",
            "adapters in no class of the router": _some(unnamed),
            "prompt tokens": f"{counts['prompt_tokens']:,}",
            "prompt tokens, mean": f"{counts['prompt_tokens'] / answered:.1f}",
            "generated tokens": f"{counts['completion_tokens']:,}",
            "generated tokens, mean": f"{counts['completion_tokens'] / answered:.1f}",
            "cut at max_new_tokens": f"{counts['finish_reasons'].get('length', 0) / answered:.1%}",
            "tokens/s including start-up": f"{self.values['timings']['tokens_per_second']:,}",
            "device hours": "unknown" if hours is None else f"{hours:.3f}",
        }

    def mean_adapters(self) -> float:
        """Return the mean number of adapters in the mixture of an answered record, except rare ones."""
        sizes = sum(len(Mixture.parse(key).adapters) * count for key, count in self.counts["mixtures"].items())
        return float(sizes / max(1, self.counts["data"] - self.rare))

    def adapter_pairs(self) -> tuple[list[str], np.ndarray]:
        """Return the most used adapters, and the records [n x n] that two answered together; diagonal: one alone."""
        used: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        for key, count in self.counts["mixtures"].items():
            adapters = Mixture.parse(key).adapters
            used.update(dict.fromkeys(adapters, count))
            pairs.update({(a, b): count for a in adapters for b in adapters if a != b or len(adapters) == 1})
        names = sorted(name for name, _ in used.most_common(_MAX_ADAPTERS))
        return names, np.array([[pairs[a, b] for b in names] for a in names], dtype=float)

    def rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times [n + 1] in seconds since the start, and records and tokens per second between them [n]."""
        points = np.array([point[:4] for point in self.values.get("timeline", [])], dtype=float).reshape(-1, 4)
        if len(points) < 2:
            return np.zeros(1), np.zeros(0), np.zeros(0)
        points = points[np.unique(np.linspace(0, len(points) - 1, _MAX_POINTS).round().astype(int))]
        points = points[np.concatenate([[True], np.diff(points[:, 0]) > 0])]
        times, done = points[:, 0], points[:, 1] + points[:, 2]
        seconds = np.diff(times)
        return times - times[0], np.diff(done) / seconds, np.diff(points[:, 3]) / seconds

    def device_hours(self) -> float | None:
        """Return the hours of the generating actors' devices, start-up included; None if they were not recorded."""
        seconds = self.values.get("devices", {}).get("device_seconds")
        return None if seconds is None else float(seconds) / 3600


def _some(names: list[str]) -> str:
    return f"{len(names)} ({first_names(names)})" if names else "none"


def flatten_config(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested config into one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= flatten_config(value, name) if isinstance(value, dict) else {name: value}
    return found


def readable_mixture(key: str) -> str:
    """Format a mixture's key for people: decoded names, and no weight for a single adapter."""
    mixture = Mixture.parse(key)
    if not mixture.adapters:
        return "base model alone"
    if len(mixture.adapters) == 1:
        return mixture.adapters[0]
    return " + ".join(f"{name} {weight:.3g}" for name, weight in zip(mixture.adapters, mixture.weights, strict=True))
