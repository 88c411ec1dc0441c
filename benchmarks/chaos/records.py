"""Write the numbered lines of a run's input, and count each line in its output."""

import json
import random
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.output_files import KINDS
from pipeline.storage.store.objects import list_names, partial_files, put
from pipeline.storage.store.urls import open_url
from tests import tiny

_NO_LINE = -1
_LINE = re.compile(r'"line": ?(\d+)')


@dataclass(frozen=True)
class Lines:
    """Indices of the lines that must be answered, and of the lines that must become dead letters."""

    good: set[int]
    bad: set[int]


@dataclass(frozen=True)
class Count:
    """Differences of the output from one row for each line."""

    lost: int
    doubled: int
    misplaced: int  # good lines among the dead letters, or bad ones among the data
    orphans: int  # files and shard markers that no window marker names, half-written files, rows of no line

    @property
    def exact(self) -> bool:
        """Whether every line is in exactly one of data and dead letters, and nothing else is there."""
        return not any(asdict(self).values())


def write_lines(url: str, chance: random.Random, count: int) -> Lines:
    """Write records for the tiny model; some are cut, too long, without a prompt or repeat an id."""
    kinds = ["repeated", "cut", "empty", "long"]
    kinds += chance.choices(["good", *kinds], weights=[92, 2, 2, 2, 2], k=count - len(kinds) - 1)
    chance.shuffle(kinds)
    kinds.insert(0, "good")  # its id is repeated
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
    """Return the line numbers in the data and the dead letters, as a reader sees them; `_NO_LINE` if there is none."""
    data = read_run(output).to_table(columns=["line"])["line"].to_pylist()
    dead = read_dead(output).to_table(columns=["record"])["record"].to_pylist()
    return data, [int(found.group(1)) if (found := _LINE.search(text)) else _NO_LINE for text in dead]


def count(output: str, lines: Lines) -> Count:
    """Count every line of a finished run, and the files that its window markers do not name."""
    data, dead = seen(output)
    everything = Counter(data + dead)
    store = MarkerStore(output)
    files = {f"{kind}/{name}" for kind in KINDS for name in list_names(store.fs, store.path(kind))}
    orphans = files - store.referenced_files()
    markers = {name for name in list_names(store.fs, store.path("_commits")) if not name.startswith("window-")}
    folders = (store.root, store.path("_plan"), store.path("_lease"))
    partial = [name for folder in folders for name in partial_files(store.fs, folder)]
    return Count(
        lost=len((lines.good | lines.bad) - everything.keys()),
        doubled=sum(times - 1 for times in everything.values()),
        misplaced=len(lines.good & set(dead)) + len(lines.bad & set(data)),
        orphans=len(orphans) + len(markers) + len(partial) + len(everything.keys() - (lines.good | lines.bad)),
    )
