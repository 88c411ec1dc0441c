"""Write `report.html`: one file that needs no network, made from the committed output of a run.

Counts come from the markers; distributions and examples come from a bounded sample of the output, so that the report of
a billion rows takes no longer than that of a million.
"""

from importlib.resources import files

import jinja2
import numpy as np

from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.output.run import REPORT, RunFolder

from .comparison import compare_runs
from .output_sample import OutputSample, sample_data, sample_dead_letters
from .run_summary import RunSummary, readable_mixture

_BARS, _SAMPLED_MIXTURES = 20, 6


def write_report(url: str, against: str | None = None, device_hour: float | None = None) -> str:
    """Write ``report.html`` beside the run's data and return its path; see `render`."""
    return RunFolder(url).write(REPORT, render(url, against, device_hour).encode())


def render(url: str, against: str | None = None, device_hour: float | None = None) -> str:
    """Render the report of a run as one HTML page.

    ``against``: URL of an earlier run to compare with; ``device_hour``: a price that replaces the configured one.
    """
    run = RunSummary.read(url)
    comparison = compare_runs(run, RunSummary.read(against), url, against) if against else None
    top = most_frequent(run.counts["mixtures"], _BARS)
    sample = sample_data(read_run(url), [key for key, _ in top[:_SAMPLED_MIXTURES]])
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files(__package__).joinpath("report.html.j2").read_text()
    )
    return template.render(
        run=run.values,
        url=run.url,
        counts=run.counts,
        figures=run.figures() | _cost(run, device_hour),
        top=top,
        readable=readable_mixture,
        more_mixtures=len(run.counts["mixtures"]) - len(top),
        rare=run.rare,
        charts=_charts(run, top, sample),
        sample=sample,
        dead=sample_dead_letters(read_dead(url)),
        comparison=comparison,
    )


def _cost(run: RunSummary, device_hour: float | None) -> dict[str, str]:
    """Return the cost in all and per million tokens; nothing if the device hours or their price is not known."""
    hours, settings = run.device_hours(), run.values["config"].get("cost", {})
    currency = settings.get("currency", "")
    price = settings.get("device_hour") if device_hour is None else device_hour
    if hours is None or price is None:
        return {}
    cost = hours * price
    million = cost / max(1, run.counts["completion_tokens"]) * 1e6
    return {
        f"at {price:g} per device hour": f"{cost:,.2f} {currency}",
        "per million tokens": f"{million:,.2f} {currency}",
    }


def _charts(run: RunSummary, top: list[tuple[str, int]], sample: OutputSample) -> dict[str, str]:
    """Draw the charts, as SVG by name; a chart that would be empty is left out."""
    from .charts import bars, heat, histogram, steps  # matplotlib takes a second to import: only at the end of a job

    found: dict[str, str] = {}
    times, records, tokens = run.rates()
    if len(records) > 1:
        found["records"] = steps(times, records, "records over time", "records/s")
        found["tokens"] = steps(times, tokens, "tokens over time", "tokens/s")
    if top:
        found["mixtures"] = bars([(readable_mixture(key), count) for key, count in top], "mixtures")
    names, pairs = run.adapter_pairs()
    if len(names) > 1 and pairs.sum() > np.trace(pairs):
        found["pairs"] = heat(names, pairs, "adapters that answer together")
    if run.counts["finish_reasons"]:
        reasons = sorted(run.counts["finish_reasons"].items(), key=lambda item: -item[1])
        found["finish"] = bars(reasons, "finish reasons", width=3.75)
    if sample.rows:
        fallback, prompts = sample.numbers["fallback"].astype(bool), sample.numbers["prompt_tokens"]
        parts = [("routed", ~fallback), ("fallback", fallback)] if fallback.any() else []
        is_wide = bool(prompts.max() > 20 * max(1, prompts.min()))
        found["scores"] = histogram(sample.numbers["route_score"], "router score", parts)
        found["prompts"] = histogram(prompts, "prompt tokens", log=is_wide)
        found["answers"] = histogram(sample.numbers["completion_tokens"], "generated tokens")
    return found
