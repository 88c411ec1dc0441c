"""Find the commands in the documentation, in blocks marked ``sh`` (which run as they are) and in indented ones."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "demo/README.md")
PAGES = sorted([*(ROOT / name for name in _TOP), *(ROOT / "docs").glob("*.md")])
# A command prefix for a shell with its own processes and network: a page's Ray takes the usual ports, and its
# `ray stop` ends every Ray that it sees.
ISOLATED = (
    *("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child", "--net"),
    *("sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
)
_FENCED = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
_COMMAND = re.compile(r"^(?:    |\$ )((?:loraloom [a-z]|python -m (?:benchmarks|tests)\.).*)$")


@dataclass(frozen=True)
class Block:
    """A block that runs as it is, below its heading."""

    page: Path
    heading: str
    script: str


def blocks(page: Path) -> list[Block]:
    """The runnable blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _FENCED.finditer(text):
        headings = re.findall(r"^#+ (.*)$", text[: match.start()], re.M)
        found.append(Block(page, headings[-1], match[1]))
    return found


def run(block: Block, folder: Path, environment: Mapping[str, str], within: Sequence[str] = ()) -> tuple[float, str]:
    """Run a block; seconds and output. `AssertionError` with the output where it fails.

    ``within``: the command that runs the shell.
    """
    began = time.monotonic()
    done = subprocess.run(
        [*within, "bash", "-euo", "pipefail", "-c", block.script],
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{block.page.name}: {block.heading}: exit {done.returncode}\n{done.stdout[-3000:]}"
    return time.monotonic() - began, done.stdout


def commands(page: Path) -> Iterator[str]:
    """Commands of this project in a page, each on one line."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        match = _COMMAND.match(line)
        if match:
            command = match[1]
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            yield command


def environment_of(folder: Path) -> dict[str, str]:
    """Return the environment of commands that run in ``folder``, and link the demo's files into it."""
    (folder / "demo").symlink_to(ROOT / "demo")
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
