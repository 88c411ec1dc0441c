"""Answers whose sentences have mixtures of their own."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from pipeline.engine.core.decoder import Decoder
from pipeline.engine.request import Outcome, Request, Reroute
from pipeline.engine.sequence import Sequence

from .params import append_token, end_answer

Continue = Callable[[Sequence], AsyncGenerator[Any, None]]
"""Lets vLLM generate on from a sequence's tokens, with the mixtures of its sentences.

Yields its `CompletionOutput`s, each with the new tokens only. Closing it ends vLLM's request. If vLLM cannot go on, the
sequence fails and there are none.
"""


async def answer_by_sentence(decoder: Decoder, request: Request, reroute: Reroute, continued: Continue) -> Outcome:
    """Generate an answer, and continue it in a new request of vLLM when a sentence gets another mixture.

    By then vLLM has run the first token of that sentence with the mixture before; these steps are thrown away. The new
    request computes prompt and answer again, since other mixtures make other prefixes.
    """
    seq = decoder.start(request)
    while not seq.finish_reason:
        before, output = seq.mixture, None
        async with aclosing(continued(seq)) as outputs:
            async for output in outputs:
                _append(decoder, seq, output, reroute)
                if seq.finish_reason or seq.mixture != before:
                    break
            else:
                if not seq.finish_reason:
                    end_answer(seq, output)
    return decoder.outcome(seq)


def _append(decoder: Decoder, seq: Sequence, output: Any, reroute: Reroute) -> None:
    """Append an output's tokens to a sequence, up to its end or to the first token that gets another mixture."""
    for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
        append_token(decoder, seq, token, logprobs)
        if seq.finish_reason:
            return
        before, mixture = seq.mixture, reroute(seq.request, seq.new_tokens, seq.sentences)
        if mixture is not None:
            seq.sentences.append((len(seq.new_tokens) - 1, mixture))
            if mixture != before:
                return
