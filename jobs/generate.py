"""Answer every record of a data set with its own mixture of adapters.

    python -m jobs.generate --input URL --output URL [--limit N] [--seed N] [--new-run] [group=option] [key=value ...]

Look before you spend: `--show-config` prints the config that these words give; `--dry-run` checks everything, routes a
sample, answers some of it and prints what the job would take (tokens, device hours, output size); nothing is written.
`--progress live | lines | json | quiet` says how progress is shown.

The same command again finishes what is missing. Exit 0: every record is committed or a dead letter within the error
budget. Exit 1: over the budget, or incomplete. Exit 2: config, input, bank or router error, before any generation.
"""

import argparse

from conf import as_yaml
from conf.generate import shown_config
from jobs._arguments import add_arguments, add_progress, fill_date, need_files, read_config
from jobs._cli import OK, run_job


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    args = command_parser().parse_intermixed_args(argv)
    config = read_config(args)
    if args.show_config:
        print(as_yaml(shown_config(config)), end="")
        return OK
    need_files(args)
    fill_date(args)
    from jobs._generation import generate  # seconds of loading: what is wrong in the command is told before

    return generate(args, config)


def command_parser() -> argparse.ArgumentParser:
    """The options of this command."""
    parser = argparse.ArgumentParser(prog="jobs.generate", description="Answer records with mixtures of adapters.")
    add_arguments(parser)
    parser.add_argument("--new-run", action="store_true", help="discard what an earlier run left in the output")
    add_progress(parser)
    parser.add_argument("--show-config", action="store_true", help="print the composed config and end")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print an estimate and end")
    parser.add_argument("--basis", metavar="URL", help="--dry-run: take speed and lengths from this earlier run")
    parser.add_argument(
        "--sample-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="--dry-run: answer samples for so long (0: none)",
    )
    return parser


if __name__ == "__main__":
    run_job(main)
