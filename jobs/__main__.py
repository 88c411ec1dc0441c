"""The program ``loraloom``: each command is the module of this package that has its name.

``loraloom train-router ...`` is the same as ``python -m jobs.train_router ...``.
"""

import ast
import os
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from jobs._cli import run_job

# In the order in which a user needs them.
COMMANDS = (
    *("train-adapters", "adapters", "train-router", "router", "add-adapter", "route"),
    *("generate", "retry-dead", "evaluate", "review", "report", "export", "submit"),
)


def command_named(name: str) -> click.Command | None:
    """The command of a name, None for an unknown one; its module is imported only now."""
    if name not in COMMANDS:
        return None
    command: click.Command = import_module(f"jobs.{module_name(name)}").main
    return command


def module_name(command: str) -> str:
    """The name of a command's module."""
    return command.replace("-", "_")


def summary(name: str) -> str:
    """The first line of a command's module, which is not imported: some take seconds."""
    source = Path(__file__).with_name(f"{module_name(name)}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


class Commands(click.Group):
    """The commands, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name."""
        return command_named(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line for each command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in COMMANDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names that start with ``incomplete``."""
        return [CompletionItem(name, help=summary(name)) for name in COMMANDS if name.startswith(incomplete)]


@click.group(cls=Commands, no_args_is_help=False)
@click.version_option(package_name="loraloom")
def loraloom() -> None:
    """Answer the records of a data set, each with its own mixture of LoRA adapters.

    Options and config values (group=option, key=value) may come in any order.
    """


def main() -> NoReturn:
    """Run the command line of this process."""
    if "_LORALOOM_COMPLETE" in os.environ:
        loraloom.main(prog_name="loraloom")  # print what completes the command line, and exit
    run_job(loraloom, "loraloom")


if __name__ == "__main__":
    main()
