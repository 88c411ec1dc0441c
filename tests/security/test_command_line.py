"""What a command says as it ends holds no credentials of its command line."""

import sys

import click
import pytest

from jobs import generate
from jobs.__main__ import loraloom
from jobs._cli import run_job
from pipeline.errors import UserError


@pytest.mark.parametrize("error", [UserError, OSError])
def test_a_command_masks_whatever_it_ends_with(
    error: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("failing")
    def main() -> int:
        raise error("cannot read https://user:pass@host/x?sig=1")

    monkeypatch.setattr(sys, "argv", ["loraloom"])
    with pytest.raises(SystemExit) as ended:
        run_job(main)
    said = capsys.readouterr().err
    assert ended.value.code == (2 if error is UserError else 1)
    assert "https://***@host/x?***" in said
    assert ("Traceback" in said) == (error is OSError)
    assert "pass@" not in said.replace('raise error("cannot read https://***@host/x?***', "")


WRONG = [
    ['--limit=https://h/x?sig=a"SECRET'],
    ["--limit", "https://h/x?sig=a'SECRET"],
    ["--limit", "https://h/x?sig=a\\SECRET"],
    ["--limit", "s3://key:a SECRET@bucket/x"],
    ["--progress", 'https://h/x?sig="SECRET"'],
    ["--input", "/in", "--output", "/out", 'seed="s3://key:a SECRET@bucket/x"'],
    ["--input", 's3://key:a" SECRET@bucket/x', "--output", "/out"],
]


@pytest.mark.long
@pytest.mark.parametrize("words", [["--inputs=https://h/x?sig=SECRET"], ["-xhttps://h/x?sig=SECRET"], *WRONG])
@pytest.mark.parametrize("program", ["jobs.generate", "loraloom"])
def test_a_wrong_command_line_is_told_without_its_credentials(
    program: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, *words] if program == "jobs.generate" else [program, "generate", *words])
    with pytest.raises(SystemExit) as ended:
        run_job(generate.main) if program == "jobs.generate" else run_job(loraloom, "loraloom")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(said.splitlines()) == 1
    assert "SECRET" not in said
    assert ("***" in said) == (words in WRONG)  # the value of an unknown option is not printed at all
    assert said.startswith("loraloom generate: ") == ("/out" not in words)
    assert said.endswith("; see loraloom generate --help\n") == ("/out" not in words)
