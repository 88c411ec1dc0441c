"""The actor that keeps the incidents of a job. It imports nothing: its process is there for the whole job."""

from collections import Counter

_KINDS = 100  # different incidents that are told apart


class Notes:
    """Counts of what went wrong, and of starts of actors that have no end yet."""

    def __init__(self) -> None:
        self._noted: Counter[str] = Counter()
        self._open: Counter[str] = Counter()  # starts without an end, by actor

    def note(self, what: str) -> None:
        """One more of these."""
        self._noted[what if what in self._noted or len(self._noted) < _KINDS else "others"] += 1

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
