"""The input of a run, whose lines are numbered, and how often each line came out."""

import json
import random
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.log import KINDS, CommitLog
from pipeline.storage.store.objects import half_written, names, put
from pipeline.storage.store.urls import open_url
from tests import tiny

_NO_LINE = -1
_LINE = re.compile(r'"line": ?(\d+)')


@dataclass(frozen=True)
class Lines:
    """Numbers of the lines that must be answered, and of those that must become dead letters."""

    good: set[int]
    bad: set[int]


@dataclass(frozen=True)
class Count:
    """How the output differs from one row for each line."""

    lost: int
    doubled: int
    misplaced: int  # good lines among the dead letters, or bad ones among the data
    orphans: int  # files and shard markers that no window marker names, what was written by half, rows of no line

    @property
    def exact(self) -> bool:
        """Every line is in exactly one of data and dead letters, and there is nothing else."""
        return not any(asdict(self).values())


def write_lines(url: str, chance: random.Random, count: int) -> Lines:
    """Records for the tiny model; among them repeated ids, cut lines, records without a prompt and too long ones."""
    kinds = ["repeated", "cut", "empty", "long"]
    kinds += chance.choices(["good", *kinds], weights=[92, 2, 2, 2, 2], k=count - len(kinds) - 1)
    chance.shuffle(kinds)
    kinds.insert(0, "good")  # what is repeated
    made = [_line(number, kind, chance) for number, kind in enumerate(kinds)]
    put(*open_url(url), "".join(f"{line}\n" for line in made).encode())
    good = {number for number, kind in enumerate(kinds) if kind == "good"}
    return Lines(good, set(range(count)) - good)


def _line(number: int, kind: str, chance: random.Random) -> str:
    names = chance.sample(tiny.ADAPTERS, chance.choice([1, 1, 2]))
    prompt = " ".join(tiny.prompts_of(name, 1, seed=number)[0] for name in names)
    row: dict[str, Any] = {"line": number, "id": f"r{0 if kind == 'repeated' else number}"}
    if kind != "empty":
        row["prompt"] = prompt * 200 if kind == "long" else prompt
    text = json.dumps(row)
    return text[:-8] if kind == "cut" else text


def seen(output: str) -> tuple[list[int], list[int]]:
    """Line numbers in the data and in the dead letters, as a reader sees them; `_NO_LINE` where one has none."""
    data = read_run(output).to_table(columns=["line"])["line"].to_pylist()
    dead = read_dead(output).to_table(columns=["record"])["record"].to_pylist()
    return data, [int(found.group(1)) if (found := _LINE.search(text)) else _NO_LINE for text in dead]


def count(output: str, lines: Lines) -> Count:
    """Count every line of a finished run, and look for what its window markers do not name."""
    data, dead = seen(output)
    everything = Counter(data + dead)
    log = CommitLog(output)
    named = log.named()
    there = {f"{kind}/{name}" for kind in KINDS for name in names(log.fs, log.path(kind))}
    markers = {name for name in names(log.fs, log.path("_commits")) if not name.startswith("window-")}
    folders = (log.root, log.path("_plan"), log.path("_lease"))
    halves = [name for folder in folders for name in half_written(log.fs, folder)]
    return Count(
        lost=len((lines.good | lines.bad) - everything.keys()),
        doubled=sum(times - 1 for times in everything.values()),
        misplaced=len(lines.good & set(dead)) + len(lines.bad & set(data)),
        orphans=len(there - named) + len(markers) + len(halves) + len(everything.keys() - (lines.good | lines.bad)),
    )
