"""What every command shares: exit codes and one-line errors."""

import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import UserError

OK, INCOMPLETE, USER_ERROR = 0, 1, 2


def run_job(main: Callable[[list[str]], int]) -> NoReturn:
    """Run ``main`` over the command line; a `UserError` becomes its message on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        code = USER_ERROR
    sys.exit(code)
