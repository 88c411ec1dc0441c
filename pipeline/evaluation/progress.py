"""A line now and then that says how far a long step is and when it should be done."""

import time
from collections.abc import Callable

_ENOUGH = 20  # items before a guess: the first wait for a whole batch


class Progress:
    """Counts ``total`` items whose work sums to ``work`` (any unit); prints through ``say``, at most every 10 s."""

    def __init__(self, label: str, total: int, work: float, say: Callable[[str], None]) -> None:
        self.label, self.total, self.work, self.say = label, total, work, say
        self.done, self.worked = 0, 0.0
        self.started = self._said = time.monotonic()

    def step(self, work: float) -> None:
        """One item is done."""
        self.done += 1
        self.worked += work
        now = time.monotonic()
        if now - self._said >= 10 or self.done == self.total:
            self._said = now
            self.say(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        line = f"{self.label} {self.done}/{self.total}  {self.done / max(seconds, 1e-9):.1f}/s"
        if self.done == self.total:
            return f"{line}  {_duration(seconds)} in all"
        if self.done < _ENOUGH:
            return line
        return f"{line}  {_duration(seconds * (self.work - self.worked) / self.worked)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
