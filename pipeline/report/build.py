"""`report.html`: one file that needs no network, made from what the run committed.

Counts are those of the markers; distributions and examples are from a bounded sample of the output, so that a report
of a billion rows costs what that of a million does.
"""

from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from pipeline.storage import read_dead, read_run
from pipeline.storage.output.run import RunFolder

from .compare import Comparison, compare
from .figures import Run, readable
from .sample import Sample, sample_data, sample_dead

_BARS, _SAMPLED_MIXTURES = 20, 6
NAME = "report.html"


def write_report(url: str, against: str | None = None, device_hour: float | None = None) -> str:
    """Write ``report.html`` beside the run's data; returns its path. See `render`."""
    return RunFolder(url).write(NAME, render(url, against, device_hour).encode())


def render(url: str, against: str | None = None, device_hour: float | None = None) -> str:
    """The report of a run as one HTML page.

    ``against``: an earlier run to compare with; ``device_hour``: a price in the place of the configured one.
    """
    run = Run.read(url)
    compared = compare(run, Run.read(against), url, against) if against else None
    top = run.top_mixtures(_BARS)
    sample = sample_data(read_run(url), [key for key, _ in top[:_SAMPLED_MIXTURES]])
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files(__package__).joinpath("report.html.j2").read_text()
    )
    return template.render(
        run=run.values,
        url=run.url,
        counts=run.counts,
        figures=_headline(run, device_hour),
        top=top,
        readable=readable,
        more_mixtures=len(run.counts["mixtures"]) - len(top),
        rare=run.rare,
        charts=_charts(run, top, sample),
        sample=sample,
        dead=sample_dead(read_dead(url)),
        compared=_for_page(compared),
    )


def _headline(run: Run, device_hour: float | None) -> list[tuple[str, str]]:
    counts, answered = run.counts, max(1, run.counts["data"])
    found = [
        (f"{counts['records']:,}", "records"),
        (f"{counts['data']:,}", "answered"),
        (f"{counts['dead']:,}", "dead letters"),
        (f"{counts['incomplete']:,}", "missing"),
        (f"{counts['fallback'] / answered:.1%}", "base model alone"),
        (run.distinct_mixtures(), "distinct mixtures"),
        (f"{run.mean_adapters():.2f}", "adapters in a mixture"),
        (f"{counts['prompt_tokens']:,}", "prompt tokens"),
        (f"{counts['completion_tokens']:,}", "generated tokens"),
        (f"{run.values['timings']['tokens_per_second']:,}", "tokens/s with start-up"),
    ]
    return found + _cost(run, device_hour)


def _cost(run: Run, device_hour: float | None) -> list[tuple[str, str]]:
    hours, (configured, currency) = run.device_hours(), run.price()
    price = configured if device_hour is None else device_hour
    if hours is None:
        return []
    found = [(f"{hours:.2f}" if hours >= 0.1 else f"{hours * 60:.1f} min", "device hours")]
    if price is None:
        return found
    cost = hours * price
    million = cost / max(1, run.counts["completion_tokens"]) * 1e6
    found.append((f"{cost:,.2f} {currency}", f"at {price:g} a device hour"))
    return [*found, (f"{million:,.2f} {currency}", "a million tokens")]


def _charts(run: Run, top: list[tuple[str, int]], sample: Sample) -> dict[str, str]:
    """SVG by name; a chart that would show nothing is left out."""
    from . import charts  # matplotlib takes a second to import, which a job can spend at its end

    found: dict[str, str] = {}
    times, records, tokens = run.rates()
    if len(records) > 1:
        found["records"] = charts.steps(times, records, "records over time", "records/s")
        found["tokens"] = charts.steps(times, tokens, "tokens over time", "tokens/s")
    if top:
        found["mixtures"] = charts.bars([(readable(key), count) for key, count in top], "mixtures")
    names, together = run.together()
    if len(names) > 1 and together.sum() > np.trace(together):
        found["together"] = charts.heat(names, together, "adapters that answer together")
    if run.counts["finish_reasons"]:
        reasons = sorted(run.counts["finish_reasons"].items(), key=lambda item: -item[1])
        found["finish"] = charts.bars(reasons, "finish reasons", width=3.75)
    if sample.rows:
        found |= _histograms(sample.numbers)
    return found


def _histograms(numbers: dict[str, np.ndarray]) -> dict[str, str]:
    from . import charts

    fallback = numbers["fallback"].astype(bool)
    parts = [("routed", ~fallback), ("base model alone", fallback)] if fallback.any() else []
    prompts, answers = numbers["prompt_tokens"], numbers["completion_tokens"]
    return {
        "scores": charts.histogram(numbers["route_score"], "router score", parts),
        "prompts": charts.histogram(prompts, "prompt tokens", log=bool(prompts.max() > 20 * max(1, prompts.min()))),
        "answers": charts.histogram(answers, "generated tokens"),
    }


def _for_page(compared: Comparison | None) -> dict[str, Any] | None:
    return None if compared is None else vars(compared)
