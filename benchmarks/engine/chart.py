"""Draw the engine's result files: `python -m benchmarks.engine.chart` writes `docs/engine.svg`."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

RESULTS, CHART = Path("benchmarks/results"), Path("docs/engine.svg")
NAMES = {
    "fused": "this engine, mixtures",
    "fused_two_each": "this engine, two adapters each",
    "base": "this engine, base",
    "merged": "this engine, merged",
    "transformers_base": "transformers generate, base",
    "transformers_continuous_batching": "transformers continuous batching, base",
    "peft_generate": "PEFT generate, one adapter",
    "peft_one_adapter": "PEFT, one adapter",
    "peft_adapter_names": "PEFT adapter_names",
    "peft_all_active": "PEFT, all adapters active",
    "released_code": "released DLP-LoRA way",
}
THROUGHPUT = {"real": "32 demo prompts, 48 tokens", "skewed": "64 requests, skewed lengths", "prefill": "long prompts"}
OWN, OTHER = "#2563a8", "#b8bec6"


def main() -> None:
    """Draw tokens per second of whole workloads, and milliseconds of a decode step."""
    figures = {name: _figures(name) for name in THROUGHPUT if (RESULTS / f"engine-{name}.json").exists()}
    decode = _figures("decode") if (RESULTS / "engine-decode.json").exists() else {}
    bars: list[tuple[str, str, list[tuple[str, float]]]] = [
        (THROUGHPUT[name], "tokens/s", [(k, v["tokens_per_second"]) for k, v in found.items()])
        for name, found in figures.items()
    ]
    bars += [
        (f"decode, {shape}", "ms a step", [(k, v["step_ms"]["median"]) for k, v in found.items() if k != "seconds"])
        for shape, found in decode.items()
        if shape in ("rows=8 bank=26 mixed=2", "rows=32 bank=100 mixed=2")
    ]
    chart, axes = plt.subplots(len(bars), 1, figsize=(8, 1.6 * len(bars)), layout="constrained")
    for axis, (title, unit, values) in zip(axes, bars, strict=True):
        ordered = sorted(values, key=lambda pair: pair[1], reverse=unit != "tokens/s")
        labels = [NAMES[name] for name, _ in ordered]
        colours = [OWN if label.startswith("this") else OTHER for label in labels]
        drawn = axis.barh(labels, [value for _, value in ordered], color=colours)
        axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
        axis.set_title(f"{title} ({unit})", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    chart.savefig(CHART, metadata={"Date": None})
    print(CHART)


def _figures(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"engine-{name}.json").read_text())["figures"]
    return content


if __name__ == "__main__":
    main()
