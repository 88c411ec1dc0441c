"""The exception for problems that the user can solve, and the text of other errors."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input, config, adapter, router or URL.

    The message is one line: what was wrong, where, and what to do. Jobs print it without a traceback and exit 2.
    """


def one_line(error: BaseException, max_chars: int | None = 300) -> str:
    """The message of an error on one line, cut after ``max_chars``; the name of its type if it has none."""
    return " ".join(str(error).split())[:max_chars] or type(error).__name__


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, separated by commas, and dots if there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
