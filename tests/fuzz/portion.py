"""One portion of inputs of one target, in a process of its own: a crash or a hang names its input."""

import contextlib
import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import orjson
import torch

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import Target, outcome, targets

LONGEST = 5.0  # seconds for one input, hundreds of times what it takes
_STUCK = 60  # seconds after which a process that heeds no signal ends itself


class HangError(BaseException):
    """An input took longer than it may; no `except Exception` catches it."""


@dataclass
class Portion:
    """Inputs ``first`` to ``last`` (not included) of a target. The input of a number is the same in every process."""

    target: str
    seed: int
    first: int
    last: int


def content_of(target: Target, seed: int, number: int) -> bytes:
    """The input of a number."""
    return mutated(target.seeds, random.Random(f"{seed}/{target.name}/{number}"))


def run_portion(target: Target, portion: Portion, at: Path | None = None) -> dict[str, object]:
    """Put all inputs of a portion to a target. ``at``: a file that always holds the number of the present one."""
    counts: Counter[str] = Counter()
    failures: list[dict[str, object]] = []
    slowest, started = 0.0, time.monotonic()
    place = at.open("r+b", buffering=0) if at else None
    for number in range(portion.first, portion.last):
        if place:
            os.pwrite(place.fileno(), number.to_bytes(8, "little"), 0)
        content = content_of(target, portion.seed, number)
        began = time.monotonic()
        try:
            with _watchdog():
                counts[outcome(target, content)] += 1
        except (Exception, HangError) as error:
            counts["failed"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
            failures.append({"target": target.name, "number": number, "error": said})
        slowest = max(slowest, time.monotonic() - began)
    if place:
        place.close()
    return {
        "counts": dict(counts),
        "failures": failures[:20],
        "seconds": round(time.monotonic() - started, 2),
        "slowest_ms": round(1000 * slowest, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


@contextlib.contextmanager
def _watchdog() -> Iterator[None]:
    def hang(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """A process's work: the portion as JSON on stdin, what came of it as JSON on stdout."""
    portion = Portion(**orjson.loads(sys.stdin.buffer.read()))
    torch.set_num_threads(1)
    faulthandler.enable()
    faulthandler.dump_traceback_later(_STUCK * max(1, (portion.last - portion.first) // 1000), exit=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        (target,) = (t for t in targets(Path(folder)) if t.name == portion.target)
        limit = _virtual_memory() + 6 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        outcome(target, target.seeds[0])  # what it imports is no input's time
        result = run_portion(target, portion, Path(sys.argv[1]))
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.buffer.write(orjson.dumps(result))


def _virtual_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
