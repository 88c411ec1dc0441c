"""What a command says as it ends holds no credentials of its command line."""

import argparse
import sys

import pytest

from jobs import generate
from jobs._cli import run_job
from pipeline.errors import UserError


@pytest.mark.parametrize("error", [UserError, OSError])
def test_a_command_masks_whatever_it_ends_with(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        raise error("cannot read https://user:pass@host/x?sig=1")

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    said = capsys.readouterr().err
    assert ended.value.code == (2 if error is UserError else 1)
    assert "https://***@host/x?***" in said
    assert ("Traceback" in said) == (error is OSError)
    assert "pass@" not in said.replace('raise error("cannot read https://***@host/x?***', "")


@pytest.mark.parametrize(
    "words",
    [
        ["--inputs=https://h/x?sig=SECRET"],
        ['--limit=https://h/x?sig=a"SECRET'],
        ["--limit", "s3://key:a SECRET@bucket/x"],
        ["--progress", 'https://h/x?sig="SECRET"'],
        ["--input", "/in", "--output", "/out", 'seed="s3://key:a SECRET@bucket/x"'],
        ["--input", 's3://key:a" SECRET@bucket/x', "--output", "/out"],
    ],
)
def test_a_wrong_command_line_is_told_without_its_credentials(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)  # put back at the end
    monkeypatch.setattr(sys, "argv", ["jobs.generate", *words])
    with pytest.raises(SystemExit) as ended:
        run_job(generate.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "SECRET" not in said
    assert "***" in said
    assert ("usage: jobs.generate" in said) == ("jobs.generate: error: " in said) == ("/out" not in words)
