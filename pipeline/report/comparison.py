"""Compare two runs: their figures, the differences of their configs and mixtures, and answers that changed."""

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pipeline.storage import read_run

from .output_sample import shorten
from .run_summary import RunSummary

_MAX_COMPARED, _MAX_SCANNED = 400, 2_000_000  # answers of run A, rows of run B
_MAX_SHOWN, _MAX_MIXTURES = 8, 12  # answers and mixtures in the report


@dataclass(frozen=True)
class RunComparison:
    """``figures``: (name, of A, of B); ``config``: (key, of A, of B); ``mixtures``: (mixture, share of A, of B).

    ``answers``: some records whose answers differ; ``same`` of ``compared`` answers are equal.
    """

    url: str
    figures: list[tuple[str, str, str]]
    config: list[tuple[str, str, str]]
    mixtures: list[tuple[str, float, float]]
    answers: list[dict[str, Any]]
    same: int
    compared: int


def compare_runs(a: RunSummary, b: RunSummary, url_a: str, url_b: str) -> RunComparison:
    """Compare run A with an earlier run B; answers are matched by id, for the first records of A."""
    answers, same, compared = _answers(url_a, url_b)
    other = b.figures()
    figures = [(name, value, other[name]) for name, value in a.figures().items()]
    return RunComparison(b.url, figures, _config(a, b), _mixtures(a, b), answers, same, compared)


def _config(a: RunSummary, b: RunSummary) -> list[tuple[str, str, str]]:
    one, other = (run.parameters() for run in (a, b))
    keys = dict.fromkeys([*one, *other])
    differing = [key for key in keys if one.get(key) != other.get(key) and key != "command.output"]
    return [(key, str(one.get(key)), str(other.get(key))) for key in differing]


def _mixtures(a: RunSummary, b: RunSummary) -> list[tuple[str, float, float]]:
    shares = [{key: n / max(1, run.counts["data"]) for key, n in run.counts["mixtures"].items()} for run in (a, b)]
    moved = [(key, shares[0].get(key, 0.0), shares[1].get(key, 0.0)) for key in {*shares[0], *shares[1]}]
    moved = [row for row in moved if row[1] != row[2]]
    return sorted(moved, key=lambda row: (-abs(row[1] - row[2]), row[0]))[:_MAX_MIXTURES]


def _answers(url_a: str, url_b: str) -> tuple[list[dict[str, Any]], int, int]:
    columns = ["id", "output", "mixture"]
    first = {row["id"]: row for row in read_run(url_a).head(_MAX_COMPARED, columns=columns).to_pylist()}
    dataset = read_run(url_b)
    differing: list[dict[str, Any]] = []
    same, compared, scanned = 0, 0, 0
    for fragment in dataset.get_fragments():
        rows = fragment.to_table(schema=dataset.schema, columns=columns, filter=pc.field("id").isin(list(first)))
        for row in rows.to_pylist():
            before = first[row["id"]]
            compared += 1
            same += row["output"] == before["output"]
            if row["output"] != before["output"] and len(differing) < _MAX_SHOWN:
                differing.append({"id": shorten(row["id"]), "a": _shown(before), "b": _shown(row)})
        scanned += fragment.count_rows()
        if compared >= len(first) or scanned > _MAX_SCANNED:
            break
    return differing, same, compared


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {"output": shorten(row["output"]), "mixture": row["mixture"]}
