"""The documentation's commands: all are taken by the programs as they are, and pages with ``sh`` blocks run."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import command_named
from pipeline.errors import UserError
from tests.docs.blocks import ISOLATED, PAGES, ROOT, Block, blocks, commands, environment_of, run

_PLACEHOLDER = re.compile(r"\b(URL|group=option|key=value|DIR|FILE|NAME|TYPE)\b")


_NOTHING_THERE = ("run: there is no run.json at", "bank: no folder", "router: cannot load")


class _CheckedError(Exception):
    """The command line and the config were taken."""


def found() -> list[tuple[str, str]]:
    """Page and command; those with placeholders describe, and are not to be run."""
    texts = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]
    texts += [(page.name, command) for page in PAGES for block in blocks(page) for command in _of_block(block.script)]
    return sorted({(page, command) for page, command in texts if not _PLACEHOLDER.search(command)})


def _of_block(script: str) -> list[str]:
    joined = script.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith(("loraloom ", "python -m "))]


def words_of(command: str) -> list[str]:
    """The words of a command; optional parts in brackets are taken, a comment and ``...`` are not."""
    text = re.sub(r"\[(--[^\]]*|[a-z][^\]]*=[^\]]* \.\.\.)\]", r"\1", command.partition("  #")[0])
    text = text.replace("$PWD", str(ROOT))
    return ["5" if word == "N" else word for word in shlex.split(text) if word != "..."]


@pytest.mark.parametrize(("page", "command"), found())
def test_a_command_is_taken(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, name, *words = words_of(command)
    if program == "python":
        assert importlib.util.find_spec(words[0]) is not None
        return
    monkeypatch.chdir(tmp_path)
    main: Any = command_named(name)
    assert main is not None
    for holder in (importlib.import_module(main.callback.__module__), importlib.import_module("conf.generate")):
        if hasattr(holder, "load_settings"):
            monkeypatch.setattr(holder, "load_settings", _stopping(holder.load_settings))
    with pytest.raises((_CheckedError, UserError)) as stopped:
        main(words)
    if stopped.type is UserError:  # where there is no config to check: what the command works on is not there
        assert str(stopped.value).startswith(_NOTHING_THERE)


def _stopping(load: Any) -> Any:
    def checked(*args: Any) -> Any:
        load(*args)
        raise _CheckedError

    return checked


def test_there_are_commands_to_check() -> None:
    assert len(found()) > 25
    assert {page for page, _ in found()} >= {"README.md", "docs/label.md", "first-hour.md"}


@pytest.mark.long
@pytest.mark.parametrize("wrong", ["generate --no-such-option", "generate generation.no_such_key=1", "route --input"])
def test_a_wrong_command_would_be_found(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        test_a_command_is_taken("x", f"loraloom {wrong}", tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


CLUSTER = "cluster.md"
# Pages that go on with what those before them made.
WALKS = (("first-hour.md",), ("label.md", "report.md", "output.md"), ("train-router.md",))


def test_every_page_with_runnable_blocks_is_walked() -> None:
    assert {name for walk in (*WALKS, (CLUSTER,)) for name in walk} == {page.name for page in PAGES if blocks(page)}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.smollm
@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk[0])
def test_pages_run_as_they_stand(walk: tuple[str, ...], tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    for block in (block for name in walk for block in blocks(ROOT / "docs" / name)):
        _, said = run(block, tmp_path, environment)
        assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.smollm
def test_a_cluster_of_one_machine_runs_as_it_stands(tmp_path: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs `unshare` and `ip`: `ray stop` ends every Ray of the machine, and each takes the same ports")
    page = ROOT / "docs" / CLUSTER
    whole = Block(page, "all of its blocks", "".join(block.script for block in blocks(page)))
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # Ray's need a short path
        _, said = run(whole, tmp_path, environment_of(tmp_path) | {"RAY_TMPDIR": sockets}, ISOLATED)
    assert "Traceback" not in said
    assert "104 in, 104 committed, 0 dead, 0 missing" in said
    assert re.search(r"^SUCCEEDED +loraloom-", said, re.M)
    assert re.search(r"Stopped all \d+ Ray processes", said)
