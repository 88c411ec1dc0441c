"""Shared by all commands: parsing of words, exit codes, and errors of one line."""

import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import click

from pipeline.errors import UserError

OK, INCOMPLETE, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
RESUME = "committed records are kept; run the same command again (without --new-run) to finish"


config_words = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
task_option = click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task; may be repeated.")


class Job(click.Command):
    """A command whose function returns its exit code. Called with its words, it runs in this process."""

    def __call__(self, words: Sequence[str]) -> int:
        """Run the command; `UserError` if its words are wrong."""
        return run(self, words, f"loraloom {self.name}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words. Unlike plain click, an option never takes the next option for its value."""
        # As an unset variable of a shell leaves them; an empty path would be the folder that the command runs in.
        empty = [word[:-1] for word in args if re.fullmatch(r"--[\w-]+=", word)]
        empty += [word for word, value in pairwise(args) if word.startswith("--") and "=" not in word and not value]
        if empty:
            raise click.BadOptionUsage(empty[0], f"Option {empty[0]!r} is empty.", ctx)
        rest = super().parse_args(ctx, args)
        for option in self.params:
            value = ctx.params.get(str(option.name))
            if isinstance(value, (str, Path)):  # a shell leaves the ~ of --bank=~/bank
                ctx.params[str(option.name)] = type(value)(os.path.expanduser(value))
            if isinstance(value, str) and value.startswith("--"):
                raise click.BadOptionUsage(option.opts[0], f"Option {option.opts[0]!r} requires an argument.", ctx)
        for word in ctx.params.get("overrides", ()):
            key, equals, _ = word.partition("=")
            if "/" in key or not (equals or word.startswith("~")):
                problem = f"{word!r} is not KEY=VALUE; give one input, and a glob in quotes: --input 'FOLDER/*.jsonl'"
                raise click.UsageError(problem, ctx)
        return rest


def run(command: click.Command, words: Sequence[str], prog: str) -> int:
    """Parse the words and run the command in this process; returns the exit code.

    Raises `UserError` if the words are wrong. ``prog``: the program's name in help and errors.
    """
    try:
        with parse(command, words, prog) as context:
            return int(command.invoke(context))
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.UsageError as error:
        raise _usage_error(error, prog) from None


def parse(command: click.Command, words: Sequence[str], prog: str) -> click.Context:
    """Parse the words of a command without running it; its values are the context's ``params``."""
    try:
        return command.make_context(prog, list(words))
    except click.UsageError as error:
        raise _usage_error(error, prog) from None


def run_job(command: click.Command, prog: str | None = None) -> NoReturn:
    """Run a command over ``sys.argv`` and exit; a `UserError` becomes its message on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show stops no job
    try:
        code = run(command, sys.argv[1:], prog or f"loraloom {command.name}")
    except BaseException as error:
        code = _report(error)
    sys.exit(code)


def _usage_error(error: click.UsageError, prog: str) -> UserError:
    path = error.ctx.command_path if error.ctx else prog
    return UserError(f"{path}: {error.format_message().rstrip('.')}; see {path} --help")


def _report(error: BaseException) -> int:
    """Print an error on stderr and return its exit code. What must end at once does not return."""
    # Loads pyarrow: half a second that --help does not need.
    from pipeline.job.stop import SIGTERM, StopKind, StoppedError

    if isinstance(error, UserError):
        print(_masked(str(error)), file=sys.stderr)
        return USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        _exit_at_once(f"interrupted; {RESUME}", INTERRUPTED)
    if isinstance(error, StoppedError):
        code = TERMINATED if error.reason.kind is StopKind.SIGNAL else INCOMPLETE
        _exit_at_once(f"stopped: {_masked(str(error))}; {RESUME}", code)
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's own handler, outside of a job's work
        _exit_at_once(f"stopped: {SIGTERM.message}; {RESUME}", TERMINATED)
    if not isinstance(error, Exception):
        raise error
    # A fault of this program: the traceback is for its developers, and may quote a URL.
    print(_masked("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return INCOMPLETE


def _masked(text: str) -> str:
    """Mask credentials in a message.

    Within a text a blank or a quote ends a URL, so the words of the command line are looked for whole.
    """
    from pipeline.storage.store.redact import masked, masked_word

    for word in sys.argv[1:]:
        value = word.partition("=")[2]
        for quoted in (word, value, value.strip("'\"")):
            for shown in (quoted, repr(quoted)[1:-1]):
                text = text.replace(shown, masked_word(quoted))
    return masked(text)


def _exit_at_once(message: str, code: int) -> NoReturn:
    """Exit without cleaning up: a thread that still runs the stream would fail at Ray's shutdown, or restart it.

    A local Ray ends with its driver; a cluster drops the driver's work.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder ``new`` to ``target``; the files that were there are removed last."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
