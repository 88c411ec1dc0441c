"""Runs that the pages show are those that `benchmarks.recorded_runs` recorded."""

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recorded_runs import COMMANDS, RECORDED_BLOCK, RESULTS, recorded_runs, updated_page
from tests.docs.blocks import PAGES, ROOT

_SUMMARY = re.compile(r"^ *(?:records    \d+ in|tokens     \d+ generated)", re.M)
RUNS: dict[str, Any] = {"demo": {"command": "run it", "lines": ["3 records", "looked", "done in 2.5 s", "  7  a:1.0"]}}


def page_of(*lines: str) -> str:
    return "\n".join(["<!-- recorded: demo -->", "```text", *lines, "```", "after"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_summary_of_a_run_is_a_recorded_one(page: Path) -> None:
    assert _SUMMARY.search(RECORDED_BLOCK.sub("", page.read_text())) is None


def test_the_pages_that_show_runs_are_covered() -> None:
    shown = {page.name for page in PAGES if RECORDED_BLOCK.search(page.read_text())}
    assert shown == {"README.md", "cluster.md", "first-hour.md", "report.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_what_was_recorded(page: Path) -> None:
    if not RESULTS.exists():
        pytest.skip("nothing is recorded yet: python -m benchmarks.recorded_runs")
    assert updated_page(page.read_text(), recorded_runs()) == page.read_text()


def test_the_recorded_demo_is_the_one_of_make_demo() -> None:
    made = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    target = made[made.index("\ndemo:") :].split("\n\n")[0]
    commands = [" ".join(line.split()) for line in target.splitlines() if "/loraloom " in line]
    assert commands == [f"$(BIN)/{COMMANDS[name]}" for name in ("demo", "demo: evaluation")]


def test_recorded_figures_take_the_place_of_the_old() -> None:
    old = page_of("$ run this", "1 records", "...", "done in 99 s", "  4  a:1.0")
    assert updated_page(old, RUNS) == page_of("$ run it", "3 records", "...", "done in 2.5 s", "  7  a:1.0")


@pytest.mark.parametrize(
    "lines",
    [
        ("3 records", "done in 2.5 s"),  # a line between them is left out without "..."
        ("done in 2.5 s", "3 records"),
        ("3 records", "...", "done in 2.5 hours"),
    ],
    ids=["a gap", "another order", "other words"],
)
def test_lines_that_were_not_printed_are_found(lines: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no recorded line is like"):
        updated_page(page_of(*lines), RUNS)
