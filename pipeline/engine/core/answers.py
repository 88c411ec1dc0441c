"""Several answers to one request: rows of their own on the way in, one completion on the way out."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.engine.request import Failure, Request
from pipeline.records import Completion

Answer = tuple[Request, Completion | Failure]


@dataclass
class _Joint:
    """A request that gets several answers, and those it has."""

    request: Request
    parts: list[Request]
    done: dict[int, Completion | Failure] = field(default_factory=dict)


class Answers:
    """Splits requests into one for each answer, and joins what comes of them."""

    def __init__(self) -> None:
        self._joints: dict[int, _Joint] = {}  # by the part's identity as an object

    def split(self, request: Request, n: int) -> list[Request]:
        """The request itself, or ``n`` copies that are numbered from 0."""
        if n == 1:
            return [request]
        joint = _Joint(request, [replace(request, number=number) for number in range(n)])
        self._joints |= {id(part): joint for part in joint.parts}
        return joint.parts

    def join(self, part: Request, answer: Completion | Failure) -> Iterator[Answer]:
        """The request's answer, once all of its parts have theirs."""
        joint = self._joints.pop(id(part), None)
        if joint is None:
            yield part, answer
            return
        joint.done[part.number] = answer
        if len(joint.done) == len(joint.parts):
            yield joint.request, together([joint.done[number] for number in sorted(joint.done)])


def together(answers: list[Completion | Failure]) -> Completion | Failure:
    """The first answer with all of them in it, and the tokens of all; where some failed, the first failure."""
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        return failures[0]
    total = sum(completion.completion_tokens for completion in completions)
    return replace(completions[0], completion_tokens=total, answers=tuple(completions))
