"""Measure how long engines wait in a job of many windows: `python -m benchmarks.scale --case windows`.

Each node has one fake GPU and one engine, whose start and whose work are slept, so that 8 of them run on two cores. A
window is ``window_seconds`` of work of all engines. The variants: nothing happens; ``poison`` rows of each window kill
the engine that answers them; a node is lost in the middle of the job.

An engine is idle while it answers no shard, from when it was first ready until the last commit of the job, or until its
node is lost. Starts after the first one count as idle; ``idle_share_between_starts`` leaves them out.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.runs import Kit
from benchmarks.scale.runs import Nodes, counted, job_settings_of, pools, write_input
from benchmarks.scale.sleeping import AssignsMixtures, SleepsByRow
from pipeline.job.generate import GenerateJob
from pipeline.telemetry.progress import Snapshot

PLAIN, POISON, LOST = VARIANTS = ("plain", "poison", "node lost")


@dataclass(frozen=True)
class WindowsCase:
    """A job of many windows. ``speed``: records per second of an engine; ``poison``: rows of a window, if any kill."""

    nodes: int = 8
    windows: int = 10
    window_seconds: float = 75.0
    engine_start: float = 60.0
    speed: float = 50.0
    poison: int = 5

    @property
    def window_records(self) -> int:
        """The number of records of a window."""
        return round(self.window_seconds * self.nodes * self.speed)


def run_windows(case: WindowsCase, variant: str, kit: Kit, folder: Path, nodes: Nodes) -> dict[str, Any]:
    """Run the job on the connected cluster ``nodes``; a node is lost in the middle of its work if the variant says so.

    All times of the result are seconds since the start of the job.
    """
    records = case.windows * case.window_records
    write_input(folder / "in.jsonl", records)
    every = case.window_records // case.poison if variant == POISON else 0
    scale = {"mixtures": 26, "hot": 0.0, "engine_start": case.engine_start, "speed": case.speed, "poison_every": every}
    settings = job_settings_of(kit, folder, scale, f"window.records={case.window_records}", "errors.budget=0.05")
    lines: list[tuple[float, str]] = []
    lost: dict[str, float] = {}  # when, by the node's id

    def lose() -> None:
        at = time.time()
        lost[nodes.lose_one()] = at

    watch = _Commits(lose if variant == LOST else lambda: None)
    job = GenerateJob(
        settings,
        lambda line: lines.append((time.time(), line)),
        listener=watch,
        generator=SleepsByRow,
        router=AssignsMixtures,
    )
    job.prepare()
    start = time.time()
    result = job.run(pools)
    ended, last = time.time(), watch.last
    traces = [[json.loads(line) for line in p.read_text().splitlines()] for p in (folder / "trace").glob("*.jsonl")]
    by_node: dict[str, list[list[dict[str, Any]]]] = {}
    for events in sorted(traces, key=lambda events: float(events[0]["start"])):
        by_node.setdefault(events[0]["node"], []).append(events)
    engines = [_engine(processes, lost.get(node, last), start) for node, processes in by_node.items()]
    run = json.loads((folder / "out" / "run.json").read_text())
    return {
        "records": records,
        **counted(str(folder / "out"), records),
        "dead": result.counts.dead,
        "incomplete": result.incomplete,
        "job_seconds": ended - start,
        "last_commit_seconds": last - start,
        "node_lost_seconds": [round(at - start, 2) for at in lost.values()],
        "idle_share_most": max(engine["idle_share"] for engine in engines),
        "idle_share_between_starts_most": max(engine["idle_share_between_starts"] for engine in engines),
        "starts": len(traces),
        "starts_told": run["timings"]["stages"]["generate start"]["calls"],
        "actors": len({events[0]["actor"] for events in traces}),  # each pass starts its own
        "deaths": sum("died" in event for events in traces for event in events) + len(lost),
        "engines": engines,
        "log": [f"{at - start:.1f} {line}" for at, line in lines],
    }


class _Commits:
    """Listens to the progress of a job: notes the ``last`` commit, and calls ``middle`` in a thread halfway."""

    def __init__(self, middle: Callable[[], Any]) -> None:
        self.last, self._done = 0.0, 0
        self._middle = threading.Thread(target=middle, daemon=True)

    def __call__(self, now: Snapshot) -> None:
        if now.done > self._done:
            self.last = time.time()
            if self._done <= now.records / 2 < now.done:
                self._middle.start()
            self._done = now.done


def _engine(processes: list[list[dict[str, Any]]], until: float, start: float) -> dict[str, Any]:
    """Return the times of the engine of one node, from the traces of its processes, the first one first."""
    shards = [_shards(events, until) for events in processes]
    ready = [next((event["ready"] for event in events if "ready" in event), until) for events in processes]
    starts = [events[0]["start"] for events in processes]
    whole = until - ready[0]
    busy = sum(end - begin for own in shards for begin, end in own)
    between = whole - sum(max(0.0, min(b, until) - a) for a, b in zip(starts[1:], ready[1:], strict=True))
    return {
        "idle_share": 1 - busy / whole,
        "idle_share_between_starts": 1 - busy / between,
        "shards": sum(map(len, shards)),
        "processes": [
            {"start": round(a - start, 2), "ready": round(b - start, 2), "shards": _text(own, start)}
            for a, b, own in zip(starts, ready, shards, strict=True)
        ],
    }


def _shards(events: Iterable[dict[str, Any]], until: float) -> list[tuple[float, float]]:
    """Return begin and end of each shard; one without an end was lost with its node."""
    shards: list[tuple[float, float]] = []
    for event in events:
        if "begin" in event:
            shards.append((event["begin"], max(event["begin"], until)))
        elif "end" in event:
            shards[-1] = shards[-1][0], event["end"]
    return shards


def _text(shards: list[tuple[float, float]], start: float) -> str:
    """Return the shards' begins and ends as ``begin-end`` words, which keep the file small."""
    return " ".join(f"{begin - start:.1f}-{end - start:.1f}" for begin, end in shards)


def config_of(case: WindowsCase) -> dict[str, Any]:
    """Return what the results of a case depend on."""
    return {**asdict(case), "window_records": case.window_records}
