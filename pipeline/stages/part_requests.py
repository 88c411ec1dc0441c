"""Answer a prompt of several parts: one row of a table, a request for each part, one answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pipeline.engine import Failure, Outcome, Request
from pipeline.records import COMPLETED, Completion, Mixture
from pipeline.routing.parts import join_answers


def part_tokens(tokens: Sequence[int], parts: Sequence[dict[str, Any]] | None) -> list[Sequence[int]]:
    """Return the token ids of each part's prompt. ``parts``: of `records.PROMPT_PARTS`, None for a prompt of one."""
    starts = [part["start"] for part in parts or ()] or [0]
    return [tokens[start:stop] for start, stop in pairwise([*starts, len(tokens)])]


@dataclass(frozen=True)
class PartRequests:
    """The requests of one record: a single one, or one for each part of its prompt, with the ``marks`` of the parts."""

    requests: tuple[Request, ...]
    marks: tuple[str, ...] = ("",)

    @staticmethod
    def of(request: Request, parts: Sequence[dict[str, Any]] | None) -> "PartRequests":
        """Divide the request of a row whose tokens hold the prompts of ``parts`` (see `records.PROMPT_PARTS`)."""
        if parts is None:
            return PartRequests((request,))
        requests = (
            replace(
                request,
                id=f"{request.id}#{number}" if number > 1 else request.id,  # each part draws its own tokens
                tokens=tokens,
                mixture=Mixture.parse(part["mixture"]),
            )
            for number, (part, tokens) in enumerate(zip(parts, part_tokens(request.tokens, parts), strict=True), 1)
        )
        return PartRequests(tuple(requests), tuple(part["mark"] for part in parts))

    def join(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Join the outcomes of all parts: a single one as it is, else the first failure, or one completion.

        It stops for the reason of its parts, and that is ``length`` if one of them was cut.
        """
        if len(outcomes) == 1:
            return outcomes[0]
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, Failure):
                return Failure(outcome.error_type, f"part {number} of {len(outcomes)}: {outcome.message}")
        answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
        tokens = sum(answer.completion_tokens for answer in answers)
        return Completion(
            output=join_answers(self.marks, [answer.output for answer in answers]),
            finish_reason="length" if any(answer.finish_reason == "length" for answer in answers) else "stop",
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=tokens,
            answer_logprob=sum((a.answer_logprob or 0.0) * a.completion_tokens for a in answers) / max(1, tokens),
        )

    def rows(self, outcomes: Sequence[Outcome]) -> list[dict[str, Any]] | None:
        """Return the answers of the parts as a value of the column `records.PARTS`; None if there is only one part."""
        if len(outcomes) == 1:
            return None
        return [
            {name: getattr(outcome, name) for name in COMPLETED.names} | {"mixture": request.mixture.key}
            for request, outcome in zip(self.requests, outcomes, strict=True)
        ]
