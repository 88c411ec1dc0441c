"""The scaling benchmark: what stands in for router and engine, and what its results must show."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.scale.runs import Case, against
from benchmarks.scale.sleeping import AssignsMixtures, Latency, Sleeps, tokens_of
from pipeline.records import Mixture
from pipeline.settings import JobSettings
from tests.cluster.head import ROOT
from tests.stages import default_job

RESULTS = ROOT / "benchmarks" / "results" / "cluster-scale.json"


def settings(**scale: Any) -> JobSettings:
    values = {"mixtures": 26, "hot": 0.0, "slow": 1.0, "adapters": 100} | scale
    return default_job("in", "out", config={"scale": values})


def assigned(count: int, **scale: Any) -> Counter[str]:
    table = pa.table({"row": list(range(count))})
    return Counter(AssignsMixtures(settings(**scale), 0, None)(table)["mixture"].to_pylist())


@pytest.mark.long
def test_mixtures_are_as_many_and_as_skewed_as_asked() -> None:
    assert len(assigned(1000, mixtures=1)) == 1
    for count in (26, 100, 1000):
        assert list(assigned(10 * count, mixtures=count).values()) == [10] * count
    skewed = assigned(10_000, mixtures=26, hot=0.9)
    assert max(skewed.values()) == pytest.approx(9000, rel=0.02)
    assert len(skewed) == 26


def test_the_latency_is_what_was_measured() -> None:
    latency = Latency()
    decode = json.loads((ROOT / "benchmarks/results/engine-decode.json").read_text())["figures"]
    measured = decode["rows=32 bank=26 mixed=2"]
    base = measured["base"]["step_ms"]["median"] / 1000
    assert latency.step(1, 1) == base * measured["merged"]["step_over_base"]["median"]
    assert latency.step(5, 20) == base * measured["fused"]["step_over_base"]["median"]
    assert latency.step(5, 27) > latency.step(5, 26) > latency.step(1, 26)


def test_an_engine_sleeps_for_its_steps_and_for_adapters_that_are_new(tmp_path: Path) -> None:
    engine = Sleeps(settings(trace=str(tmp_path)), "cpu", 1, None)
    key = Mixture.of({"a": 0.5, "b": 0.5}).key
    table = pa.table({"row": [0, 1], "mixture": [key, key]})
    answered = engine(table)
    engine(table)
    assert answered["completion_tokens"].to_pylist() == [tokens_of(0), tokens_of(1)]
    [path] = tmp_path.glob("*.jsonl")
    _, first, second = map(json.loads, path.read_text().splitlines())
    latency = Latency()
    steps = (tokens_of(0) + tokens_of(1)) / 32 * latency.pure
    assert first["end"] - first["start"] == pytest.approx(steps + 2 * latency.load, abs=0.05)
    assert second["end"] - second["start"] == pytest.approx(steps, abs=0.05)


def test_efficiency_is_the_work_of_an_engine_second_against_one_node() -> None:
    one = {"records": 100, "engine_seconds_at_speed": 10.0, "job_seconds": 12.0, "nodes": 1}
    many = {"records": 400, "engine_seconds_at_speed": 50.0, "job_seconds": 12.0, "nodes": 4}
    assert against(one, many) == {"efficiency": pytest.approx(0.8), "efficiency_with_start": pytest.approx(1.0)}


@pytest.mark.skipif(not RESULTS.exists(), reason="python -m benchmarks.scale has not been run to its end yet")
def test_the_results_show_what_they_must() -> None:
    cases: dict[str, Any] = json.loads(RESULTS.read_text())["cases"]
    for name, case in cases.items():
        assert (case["lost"], case["doubled"], case["incomplete"]) == (0, 0, 0), name
    assert cases[Case(8).name]["efficiency"] >= 0.9
    assert cases[Case(8, hot=0.9).name]["efficiency"] >= 0.85
    assert cases[Case(8, lose=True).name]["node_lost_at_seconds"] is not None
