"""Command line and config of the commands that read records. Nothing here takes long to load."""

import argparse
from datetime import UTC, date, datetime, timedelta

from conf.generate import load_config
from conf.schema import GenerateConfig
from pipeline.errors import UserError

_DATE = "{date}"
_PROGRESS = ("auto", "live", "lines", "json", "quiet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read records."""
    parser.add_argument("--input", help="file, folder or glob; any URL that fsspec knows")
    parser.add_argument("--output", help="folder or URL of the results")
    parser.add_argument(
        "--date", help="what {date} in --input and --output stands for: YYYY-MM-DD, today, yesterday (UTC)"
    )
    parser.add_argument("--limit", type=_at_least_one, metavar="N", help="only the first N records of the input")
    parser.add_argument("--seed", type=int, help="seed of sampling (config: seed)")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """The option of commands with a view of their progress (`_progress.view_of`)."""
    parser.add_argument(
        "--progress", choices=_PROGRESS, default="auto", help="how progress is shown (auto: live on a terminal)"
    )


def read_config(args: argparse.Namespace) -> GenerateConfig:
    """The config of a command; `UserError` with all that is wrong in it."""
    seed = [] if args.seed is None else [f"seed={args.seed}"]
    return load_config([*args.overrides, *seed])


def need_files(args: argparse.Namespace) -> None:
    """`UserError` where input or output are not given."""
    missing = [f"--{name}" for name in ("input", "output") if getattr(args, name) is None]
    if missing:
        raise UserError(f"command: {' and '.join(missing)} must be given")


def fill_date(args: argparse.Namespace) -> None:
    """Put ``--date`` in the place of ``{date}`` in both URLs."""
    urls = (args.input, args.output)
    if any(_DATE in (url or "") for url in urls) != (args.date is not None):
        raise UserError("config: --date goes with {date} in --input or --output, as in s3://lake/in/dt={date}/")
    if args.date is not None:
        args.input, args.output = (url and url.replace(_DATE, _date(args.date)) for url in urls)


def _date(text: str) -> str:
    days = {"today": 0, "yesterday": 1}
    if text in days:
        return (datetime.now(UTC).date() - timedelta(days[text])).isoformat()
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"config: --date {text} is not YYYY-MM-DD, today or yesterday") from None


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
