"""Settings of a job on the tiny model, for all tests of stages and jobs."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.cluster.resources import Pools, StageResources
from pipeline.conversations import PromptSettings
from pipeline.from_config import job_settings
from pipeline.settings import JobSettings, ModelRef

MODEL = ModelRef("model", "fp32", PromptSettings("raw"), False, "none")


def default_job(input_url: str, output_url: str, **changes: Any) -> JobSettings:
    """The defaults of the config, with a model, a bank and a router that do not exist."""
    return replace(_defaults(), **{"input": input_url, "output": output_url, **changes})


def tiny_job(folder: Path, model: Path, bank: Path, router: Path, **changes: Any) -> JobSettings:
    """A job from ``in`` to ``out`` below a folder, all of whose records may be dead."""
    values: dict[str, Any] = {
        "model": replace(MODEL, path=str(model)),
        "bank": str(bank),
        "router": str(router),
        "sampling": replace(_defaults().sampling, max_new_tokens=8),
        # The gate takes prompts between two classes for strange ones; here they must be blended.
        "routing": replace(_defaults().routing, gate=False),
        "error_budget": 1.0,
        "shard_records": 16,
    }
    return default_job(str(folder / "in"), str(folder / "out"), **(values | changes))


def words_of(settings: JobSettings, output: Path, *more: str) -> list[str]:
    """The command line of a job of `tiny_job`."""
    return [
        *("--input", settings.input, "--output", str(output)),
        *("model=custom", f"model.path={settings.model.path}", "model.dtype=fp32"),
        *("bank=custom", f"bank.path={settings.bank}", "router=custom", f"router.path={settings.router}"),
        *("routing.gate=false", *more),
    ]


def tiny_pools(**changes: Any) -> Pools:
    """Pools for two CPUs: one actor for each stage, with one thread."""
    small = StageResources(0.25)
    pools = Pools(read=small, route=StageResources(0.5), generate=small, write=small, threads=1)
    return replace(pools, **changes)


@cache
def _defaults() -> JobSettings:
    settings = job_settings(load_settings("generate", ["engine=native"], GenerateConfig), "", "")
    return replace(settings, model=MODEL, bank="bank", router="router", config={})
