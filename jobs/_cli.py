"""What every command shares: exit codes and one-line errors."""

import argparse
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pipeline.errors import UserError
from pipeline.job.stop import SIGTERM, StoppedError
from pipeline.storage.store.redact import masked, masked_word

OK, INCOMPLETE, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
GO_ON = "what is committed stays, the same command again (without --new-run) does the rest"


def run_job(main: Callable[[list[str]], int]) -> NoReturn:
    """Run ``main`` over the command line; a `UserError` becomes its message on stderr and exit code 2."""
    # Of the parsers of all commands; argparse would print the words as they are.
    argparse.ArgumentParser.error = _refuse  # type: ignore[method-assign, assignment]
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(_masked(str(error)), file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        _leave(f"interrupted; {GO_ON}", INTERRUPTED)
    except StoppedError as error:
        _leave(f"stopped: {_masked(str(error))}; {GO_ON}", TERMINATED if str(error) == SIGTERM else INCOMPLETE)
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        _leave(f"stopped: {SIGTERM}; {GO_ON}", TERMINATED)  # by Ray's own handler, before or after a job's work
    except Exception:  # not the user's: the traceback is for those who mend it, but it may quote a URL
        print(_masked(traceback.format_exc()), file=sys.stderr, end="")
        code = INCOMPLETE
    sys.exit(code)


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """What argparse does with a wrong command line, whose words it quotes, but masked."""
    parser.print_usage(sys.stderr)
    parser.exit(USER_ERROR, f"{parser.prog}: error: {_masked(message)}\n")


def _masked(text: str) -> str:
    """A message masked. Within a text a blank or a quote ends a URL; those of the command line are known whole."""
    for word in sys.argv[1:]:
        value = word.partition("=")[2]
        for quoted in (word, value, value.strip("'\"")):
            text = text.replace(quoted, masked_word(quoted))
    return masked(text)


def _leave(message: str, code: int) -> NoReturn:
    """End at once. A thread that still routes a window would trip over an orderly end of Ray, or start it anew.

    A local Ray ends with its driver; a cluster drops the driver's work.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def split_tasks(args: argparse.Namespace) -> argparse.Namespace:
    """Move ``key=value`` words that argparse gave to ``--tasks a b key=value`` to the overrides."""
    if args.tasks:
        args.overrides += [word for word in args.tasks if "=" in word]
        args.tasks = [word for word in args.tasks if "=" not in word]
    return args


def swap_folder(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, whose files are removed last."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
