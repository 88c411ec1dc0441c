"""Record what the commands in the documentation print, in benchmarks/results/demo-run.json.

    python -m benchmarks.recorded_runs [demo composite first-hour cluster]   # runs that are not named stay as recorded
    python -m benchmarks.recorded_runs --update-docs                         # put the recorded lines into the pages

A page shows a recorded run in a ``text`` block below ``<!-- recorded: NAME -->``, with ``...`` for lines left out.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from tests.docs.blocks import ISOLATED, PAGES, ROOT, Block, blocks, environment_of, run

RESULTS = ROOT / "benchmarks" / "results" / "demo-run.json"
RECORDED_BLOCK = re.compile(r"^<!-- recorded: (.+?) -->\n```text\n(.*?)^```", re.M | re.S)
_GENERATE = "loraloom generate --input"
COMMANDS = {
    "demo": f"{_GENERATE} demo/records.jsonl --output out/demo --new-run"
    " generation.max_new_tokens=32 output.keep_prompt=true",
    "demo: evaluation": "loraloom evaluate --run out/demo",
    "composite": f"{_GENERATE} demo/data/composite2-test.parquet --limit 96 --output out/composite --new-run"
    " generation.max_new_tokens=32 output.keep_prompt=true cost.device_hour=0.10 shuffle.shard_records=16",
}
# Log lines of Ray, progress bars and warnings of libraries, which name files of this machine.
_FOREIGN = re.compile(r"^\[?20\d\d-\d\d-\d\d |^Loading weights:|site-packages|^  warnings\.warn")
# What changes from run to run: figures, and the ids of jobs.
_VARIES = re.compile(r"(?<=loraloom-)[0-9a-f-]+|[\d.,]+")


def main() -> None:
    """Record the named runs, or update the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="demo, composite, first-hour, cluster; default: all")
    parser.add_argument("--update-docs", action="store_true", help="put the recorded lines into the pages")
    args = parser.parse_args()
    if args.update_docs:
        for page in PAGES:
            page.write_text(updated_page(page.read_text(), recorded_runs()))
        return
    from pipeline.evaluation.results import write_results  # loads torch, which the tests of the pages do not need

    for name in args.names or ["demo", "composite", "first-hour", "cluster"]:
        runs = (recorded_runs() if RESULTS.exists() else {}) | _record(name)
        write_results(RESULTS, {"runs": runs})  # at once: a later run may fail


def recorded_runs() -> dict[str, Any]:
    """Return the recorded runs by name: ``command``, ``seconds``, ``lines`` and, of a job, parts of its run.json."""
    runs: dict[str, Any] = json.loads(RESULTS.read_text())["runs"]
    return runs


def updated_page(text: str, runs: dict[str, Any]) -> str:
    """Return a page with the recorded lines in its blocks; `ValueError` for a line that no recorded line is like."""
    return RECORDED_BLOCK.sub(lambda match: _updated(match, runs[match[1]]), text)


def _updated(match: re.Match[str], recorded: dict[str, Any]) -> str:
    shown, lines, following = [], recorded["lines"], 0
    for line in match[2].splitlines():
        if line.startswith("$ "):
            shown.append(f"$ {recorded['command']}")
        elif line == "...":
            shown.append(line)
        else:
            alike = [i for i in range(following, len(lines)) if _pattern(lines[i]) == _pattern(line)]
            if not alike or (alike[0] != following and shown and shown[-1] != "..." and not shown[-1].startswith("$ ")):
                raise ValueError(f"{match[1]}: no recorded line is like {line!r} here; change the page by hand")
            shown.append(lines[alike[0]])
            following = alike[0] + 1
    return f"<!-- recorded: {match[1]} -->\n```text\n" + "".join(f"{line}\n" for line in shown) + "```"


def _pattern(line: str) -> str:
    return " ".join(_VARIES.sub("#", line).split())


def _record(name: str) -> dict[str, Any]:
    """Run the commands of one name in a folder of their own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, page = Path(temporary), ROOT / "docs" / f"{name}.md"
        environment = environment_of(folder)
        if name == "first-hour":
            return _sections(page, folder, environment)
        if name == "cluster":
            script = "".join(block.script for block in blocks(page))
            with tempfile.TemporaryDirectory(dir="/tmp") as sockets:
                done = run(Block(page, name, script), folder, environment | {"RAY_TMPDIR": sockets}, ISOLATED)
            return {name: _recorded(script, done, folder)}
        found = [(key, command) for key, command in COMMANDS.items() if key.split(":")[0] == name]
        return {k: _recorded(c, run(Block(page, k, c), folder, environment), folder) for k, c in found}


def _sections(page: Path, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a page's blocks; return them by heading, and the seconds of all as lines under the page's own name."""
    done: dict[str, tuple[float, str]] = {}
    for block in blocks(page):
        earlier, (seconds, output) = done.get(block.heading, (0.0, "")), run(block, folder, environment)
        done[block.heading] = (earlier[0] + seconds, earlier[1] + output)
    table = "\n".join(f"{heading:24}{seconds:6.0f} s" for heading, (seconds, _) in done.items())
    total = sum(seconds for seconds, _ in done.values())
    runs = {f"{page.stem}: {heading}": _recorded("", section, folder) for heading, section in done.items()}
    return runs | {page.stem: _recorded("", (total, table), folder)}


def _recorded(command: str, done: tuple[float, str], folder: Path) -> dict[str, Any]:
    seconds, output = done
    lines = [line.rstrip() for line in output.replace(str(folder), "$PWD").splitlines() if line.strip()]
    lines = [line for line in lines if not _FOREIGN.search(line)]
    recorded: dict[str, Any] = {"command": command, "seconds": round(seconds, 1), "lines": lines}
    written = re.search(r"--output (?:\$PWD/)?(\S+)", command)
    if written:
        values = json.loads(
            (folder / written[1] / "run.json").read_text().replace(f"{ROOT}/", "").replace(str(folder), "$PWD")
        )
        recorded["run"] = {key: values[key] for key in ("config", "counts", "timings")}
    return recorded


if __name__ == "__main__":
    main()
