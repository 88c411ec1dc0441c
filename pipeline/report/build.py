"""`report.html`: one file that needs no network, made from what the run committed."""

import io
from importlib.resources import files
from itertools import islice
from typing import Any

import jinja2
import matplotlib

from ..storage import read_dead, read_run
from ..storage.run import RUN, RunFolder

_SAMPLES, _TOP = 12, 20


def write_report(url: str) -> str:
    """Write ``report.html`` beside the run's data; returns its path."""
    folder = RunFolder(url)
    run = folder.read_json(RUN) or {}
    template = jinja2.Environment(autoescape=True).from_string(
        files(__package__).joinpath("report.html.j2").read_text()
    )
    mixtures = sorted(run["counts"]["mixtures"].items(), key=lambda item: (-item[1], item[0]))
    html = template.render(
        run=run,
        counts=run["counts"],
        chart=_bar_chart(mixtures[:_TOP]) if mixtures else "",
        more_mixtures=max(0, len(mixtures) - _TOP),
        samples=_samples(url),
        dead=_first(read_dead(url), ["id", "stage", "error_type", "message"], _SAMPLES),
    )
    return folder.write("report.html", html.encode())


def _bar_chart(mixtures: list[tuple[str, int]]) -> str:
    """Horizontal bars of the mixtures' counts, as inline SVG that takes the page's text colour."""
    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.32 * len(mixtures)))
    names, counts = [name for name, _ in mixtures][::-1], [count for _, count in mixtures][::-1]
    bars = axes.barh(names, counts, color="#4878a8")
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("records")
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace("#000000", "currentColor")


def _samples(url: str) -> list[dict[str, Any]]:
    """One record of each of the first mixtures met."""
    seen: dict[str, dict[str, Any]] = {}
    dataset = read_run(url)
    wanted = ["id", "prompt", "output", "finish_reason", "mixture", "route_score", "fallback"]
    columns = [name for name in wanted if name in dataset.schema.names]
    for batch in dataset.to_batches(columns=columns, batch_size=256):
        for row in batch.to_pylist():
            seen.setdefault(row["mixture"], row)
        if len(seen) >= _SAMPLES:
            break
    return list(islice(seen.values(), _SAMPLES))


def _first(dataset: Any, columns: list[str], count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.head(count, columns=columns).to_pylist()
    return rows
