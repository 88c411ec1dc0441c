"""Several answers to one request (``n``): a sequence for each on the way in, one completion on the way out."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.engine.request import Failure, Outcome, Request
from pipeline.records import Completion


class ParallelSampling:
    """Splits requests into one per answer, and joins their outcomes."""

    def __init__(self) -> None:
        self._parents: dict[int, tuple[Request, list[Outcome | None]]] = {}  # by the id() of a part

    def split(self, request: Request, n: int) -> list[Request]:
        """Return the request itself, or ``n`` copies with answer indices from 0. The parts must live until `join`."""
        if n == 1:
            return [request]
        parts = [replace(request, answer_index=index) for index in range(n)]
        outcomes: list[Outcome | None] = [None] * n
        self._parents |= {id(part): (request, outcomes) for part in parts}
        return parts

    def join(self, part: Request, outcome: Outcome) -> Iterator[tuple[Request, Outcome]]:
        """Yield the request's outcome once all of its parts have theirs."""
        if id(part) not in self._parents:
            yield part, outcome
            return
        request, outcomes = self._parents.pop(id(part))
        outcomes[part.answer_index] = outcome
        finished = [outcome for outcome in outcomes if outcome is not None]
        if len(finished) == len(outcomes):
            yield request, join_outcomes(finished)


def join_outcomes(outcomes: list[Outcome]) -> Outcome:
    """Join the outcomes of one request's answers.

    Returns a single outcome as it is, or the first failure if there is one. Else the first completion, with all
    completions as its ``answers`` and the tokens of all.
    """
    completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failures:
        return failures[0]
    if len(completions) == 1:
        return completions[0]
    total = sum(completion.completion_tokens for completion in completions)
    return replace(completions[0], completion_tokens=total, answers=tuple(completions))
