"""The mixtures of requests in the terms of vLLM's slots."""

from collections.abc import Iterable, Sequence

from pipeline.engine.request import Failure, Request
from pipeline.errors import UserError
from pipeline.records import Mixture

from .mixing.codec import decode, encode


class RequestMixtures:
    """Encodes the mixtures of requests. ``names``: of the bank's adapters, numbered from 1; ``slots``: vLLM's."""

    def __init__(self, names: Sequence[str], slots: int) -> None:
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        self._slots = slots

    def encode(self, request: Request, sentences: Iterable[tuple[int, Mixture]] = ()) -> str:
        """Return the text for the tokens of a request, prompt and answer; `UserError` for unknown adapters.

        ``sentences``: of the answer, if it has more than the request's mixture.
        """
        length = len(request.tokens)
        answer = [(length + start, mixture) for start, mixture in sentences] or [(length, request.mixture)]
        spans = [*request.prompt_spans, *answer]
        unknown = {name for _, mixture in spans for name in mixture.adapters} - self.numbers.keys()
        if unknown:
            raise UserError(f"engine: no adapter {', '.join(sorted(unknown))} in the bank that vLLM was started with")
        return encode((start, self._numbered(mixture)) for start, mixture in spans)

    def problem(self, text: str) -> Failure | None:
        """Return the failure of a request that needs more adapters than there are slots; None if they fit."""
        needed = len(decode(text).adapters)
        if needed <= self._slots:
            return None
        return Failure("BadRequest", f"its sentences mix {needed} adapters, and engine.adapter_slots is {self._slots}")

    def _numbered(self, mixture: Mixture) -> dict[int, float]:
        return {self.numbers[name]: weight for name, weight in zip(mixture.adapters, mixture.weights, strict=True)}
