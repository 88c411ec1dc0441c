"""Options of the commands that read records. Nothing here takes long to load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from jobs._cli import config_words
from pipeline.errors import UserError

if TYPE_CHECKING:
    from conf.schema import GenerateConfig

_DATE = "{date}"
_OPTIONS = (
    click.option("--input", help="File, folder or glob; any URL that fsspec knows."),
    click.option("--output", help="Folder or URL of the results."),
    click.option("--date", help="Replaces {date} in --input and --output: YYYY-MM-DD, today or yesterday (UTC)."),
    click.option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="Read only the first N records of the input."
    ),
    click.option("--seed", type=int, help="Seed of sampling (config: seed)."),
    config_words,
)

progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "live", "lines", "json", "quiet"]),
    default="auto",
    show_default=True,
    help="How progress is shown; auto: live on a terminal, else lines.",
)


@dataclass(frozen=True)
class RecordOptions:
    """Which records a command reads, where its results go, and the words of its config."""

    input: str | None
    output: str | None
    date: str | None
    limit: int | None
    seed: int | None
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "RecordOptions":
        """Take these options out of all that were parsed."""
        return cls(**{field.name: params[field.name] for field in fields(cls)})

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the config is composed from."""
        return self.overrides if self.seed is None else (*self.overrides, f"seed={self.seed}")

    def config(self) -> "GenerateConfig":
        """Compose the config; `UserError` with a line for each thing that is wrong in it."""
        from conf.generate import load_config

        return load_config(self.words)

    def files(self) -> tuple[str, str]:
        """Return the URLs of input and output, ``{date}`` replaced by ``--date``; `UserError` if one is missing."""
        if self.input is None or self.output is None:
            missing = [f"--{name}" for name in ("input", "output") if getattr(self, name) is None]
            raise UserError(f"command: {' and '.join(missing)} must be given")
        if (_DATE in self.input + self.output) != (self.date is not None):
            raise UserError("config: --date goes with {date} in --input or --output, as in s3://lake/in/dt={date}/")
        for name, url in (("input", self.input), ("output", self.output)):
            if url != url.encode("utf-8", "replace").decode():
                raise UserError(f"command: --{name} {url!r} is not UTF-8; rename the folder")
        day = _day(self.date) if self.date else ""
        return self.input.replace(_DATE, day), self.output.replace(_DATE, day)


def record_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add the options to a command, whose function gets them as `RecordOptions`, its first argument."""

    @wraps(function)
    def with_options(**params: Any) -> int:
        options = RecordOptions.of(params)
        return function(options, **{name: params[name] for name in params if not hasattr(options, name)})

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


def _day(text: str) -> str:
    days = {"today": 0, "yesterday": 1}
    if text in days:
        return (datetime.now(UTC).date() - timedelta(days[text])).isoformat()
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"config: --date {text} is not YYYY-MM-DD, today or yesterday") from None
