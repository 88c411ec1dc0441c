"""The actor that keeps the incidents of a job. It imports nothing: its process is there for the whole job."""

from collections import Counter, defaultdict

_KINDS = 100  # different incidents that are told apart


def _decides(what: str) -> bool:
    """Whether the driver stops for it: the store refuses, an actor cannot start (`incidents`)."""
    return "StoreError" in what or ", at the start of an actor" in what


class Notes:
    """Counts of what went wrong, starts of actors that have no end yet, and the time that stages took."""

    def __init__(self) -> None:
        self._noted: Counter[str] = Counter()
        self._open: Counter[str] = Counter()  # starts without an end, by actor
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """One more of these."""
        self._noted[what if what in self._noted or len(self._noted) < _KINDS or _decides(what) else "others"] += 1

    def begin(self, actor: str) -> int:
        """An actor starts; how often it did so without an end."""
        self._open[actor] += 1
        return self._open[actor]

    def end(self, actor: str) -> None:
        """An actor has started."""
        del self._open[actor]

    def noted(self) -> list[tuple[str, int]]:
        """What was noted and how often, the most frequent first."""
        return self._noted.most_common()

    def spend(self, stage: str, seconds: float) -> None:
        """A call of a stage took so long."""
        self._seconds[stage] += seconds
        self._calls[stage] += 1

    def spent(self) -> dict[str, tuple[float, int]]:
        """Seconds of all calls of each stage, and how many there were."""
        return {stage: (seconds, self._calls[stage]) for stage, seconds in self._seconds.items()}
