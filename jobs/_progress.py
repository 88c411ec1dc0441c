"""Views of a job's progress: live on a terminal, a line every ten seconds, JSON lines, or nothing."""

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.storage.commit.counts import most_frequent
from pipeline.telemetry.progress import Snapshot

_SECONDS = 10.0  # between two lines
_TOP = 5  # mixtures


class View:
    """Shows a job; this one shows nothing (``quiet``). It is entered while the job runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def update(self, snapshot: Snapshot) -> None:
        """Show the state of the job."""

    def log(self, line: str) -> None:
        """Show a message for people; also before and after the job runs."""

    def result(self, lines: list[str], values: dict[str, Any]) -> None:
        """Show the result: lines for people, values for programs."""


def view_of(mode: str) -> View:
    """Return the view of a mode; ``auto`` is live on a terminal, else lines."""
    if mode == "auto":
        mode = "live" if sys.stdout.isatty() else "lines"
    views: dict[str, type[View]] = {"live": LiveView, "lines": Lines, "json": JsonLines, "quiet": View}
    return views[mode]()


class Lines(View):
    """Prints a line at the start of each stage, and every ten seconds."""

    def __init__(self) -> None:
        self._last, self._stage = 0.0, ("", 0)

    def update(self, snapshot: Snapshot) -> None:
        """See `View.update`."""
        now, stage = time.monotonic(), (snapshot.stage, snapshot.windows_done)
        if stage != self._stage or now - self._last >= _SECONDS:
            self._last, self._stage = now, stage
            self._show(snapshot)

    def log(self, line: str) -> None:
        """See `View.log`."""
        print(line, flush=True)

    def result(self, lines: list[str], values: dict[str, Any]) -> None:
        """See `View.result`."""
        print("\n".join(lines), flush=True)

    def _show(self, snapshot: Snapshot) -> None:
        print(line_of(snapshot), flush=True)


class JsonLines(Lines):
    """Prints a JSON object per line, as often as `Lines`: ``{"event": "progress" | "message" | "result", ...}``."""

    def log(self, line: str) -> None:
        """See `View.log`."""
        self._print("message", {"message": line})

    def result(self, lines: list[str], values: dict[str, Any]) -> None:
        """See `View.result`."""
        self._print("result", values)

    def _show(self, snapshot: Snapshot) -> None:
        self._print("progress", values_of(snapshot))

    def _print(self, event: str, values: dict[str, Any]) -> None:
        print(json.dumps({"event": event, "time": round(time.time(), 1), **values}), flush=True)


class LiveView(View):
    """A live view that is redrawn twice a second, with messages above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._snapshot: Snapshot | None = None
        self._seen = time.monotonic()
        self._live = Live(
            console=self._console,
            get_renderable=self._drawn,
            refresh_per_second=2,
            transient=True,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def update(self, snapshot: Snapshot) -> None:
        """See `View.update`."""
        self._snapshot, self._seen = snapshot, time.monotonic()

    def log(self, line: str) -> None:
        """See `View.log`."""
        self._console.print(line, markup=False)

    def result(self, lines: list[str], values: dict[str, Any]) -> None:
        """See `View.result`."""
        self._console.print("\n".join(lines), markup=False)

    def _drawn(self) -> Group | Text:
        now = self._snapshot
        if now is None:
            return Text("checking")
        since = time.monotonic() - self._seen
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"windows {now.windows_done}/{now.windows}" if now.windows else "", style="bold"),
            Text(now.stage, style="cyan"),
            Text(f"{now.done:,} of {now.records:,}" if now.records else ""),
            ProgressBar(total=max(1, now.records), completed=now.done, width=30),
            Text(clock(now.seconds + since)),
            Text("" if now.eta is None else f"{clock(max(0.0, now.eta - since))} left", style="green"),
        )
        figures = Table.grid(padding=(0, 3))
        figures.add_row(*(Text.assemble((f"{name} ", "dim"), value) for name, value in figures_of(now)))
        mixtures = Table.grid(padding=(0, 2))
        for mixture, count in top_mixtures(now):
            mixtures.add_row(Text(f"{count:>8,}", style="dim"), Text(mixture, overflow="ellipsis", no_wrap=True))
        return Group(head, figures, mixtures)


def figures_of(now: Snapshot) -> list[tuple[str, str]]:
    """Return names and values of the rates and shares."""
    rates = [("records/s", now.records_per_second), ("tokens/s", now.tokens_per_second)]
    shown = [(name, "-" if value is None else f"{value:,.1f}") for name, value in rates]
    return [*shown, ("dead", f"{now.counts.dead:,}"), ("fallback", f"{now.fallback_share:.1%}")]


def top_mixtures(now: Snapshot) -> list[tuple[str, int]]:
    """Return the most frequent mixtures so far."""
    return most_frequent(now.counts.mixtures, _TOP)


def line_of(now: Snapshot) -> str:
    """Format a snapshot as one line."""
    if not now.records:
        return now.stage
    figures = "  ".join(f"{name} {value}" for name, value in figures_of(now))
    left = "" if now.eta is None else f"  {clock(now.eta)} left"
    windows = f"windows {now.windows_done}/{now.windows}"
    position = f"{clock(now.seconds)}  {windows}  {now.stage}  {now.done:,}/{now.records:,}"
    top = "".join(f"  most {mixture} ({count:,})" for mixture, count in top_mixtures(now)[:1])
    return f"{position}  {figures}{left}{top}"


def values_of(now: Snapshot) -> dict[str, Any]:
    """Return a snapshot as JSON values."""
    return {
        "stage": now.stage,
        "windows_done": now.windows_done,
        "windows": now.windows,
        "done": now.done,
        "records": now.records,
        "dead": now.counts.dead,
        "fallback_share": round(now.fallback_share, 4),
        "generated_tokens": now.counts.completion_tokens,
        "records_per_second": _rounded(now.records_per_second),
        "tokens_per_second": _rounded(now.tokens_per_second),
        "seconds": round(now.seconds, 1),
        "eta_seconds": _rounded(now.eta),
        "top_mixtures": dict(top_mixtures(now)),
    }


def clock(seconds: float) -> str:
    """Format seconds as ``1:02:03``, or ``02:03`` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
