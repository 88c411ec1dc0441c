"""Translate sampling settings to vLLM, and vLLM's outputs to the answers that the native engine would give."""

import json
from collections.abc import Sequence as SequenceOf
from typing import Any

from pipeline.engine.core.decoder import Decoder
from pipeline.engine.request import Constraint, Failure, Outcome
from pipeline.engine.sampling.constraints import JSON_STYLE
from pipeline.engine.sequence import Sequence

from .mixing.codec import KEY

_STYLE_KEY = "x-guidance"  # llguidance reads the style of JSON from this key of a schema


def sampling_params(seq: Sequence, end_tokens: set[int], mixtures: str = "", stream: bool = False) -> Any:
    """Return vLLM's `SamplingParams` for the rest of an answer, with the seed of the native engine's generator.

    vLLM decodes text only to find stop strings; otherwise answers come as token ids. ``mixtures``: of `codec.encode`.
    ``stream``: an output for each token, instead of one at the end.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling, done = seq.sampling, len(seq.new_tokens)
    drawn = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p} if sampling.is_random else {}
    return SamplingParams(
        max_tokens=seq.max_remaining,
        min_tokens=max(0, sampling.min_new_tokens - done),
        temperature=sampling.temperature if sampling.is_random else 0.0,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop=list(sampling.stop),
        stop_token_ids=sorted(end_tokens.union(sampling.stop_token_ids)),
        logprobs=sampling.logprobs or 0,  # of the chosen token, for the mean of the answer
        seed=(seq.generator.initial_seed() + done) % 2**63,  # vLLM's generator of a request starts again
        detokenize=bool(sampling.stop),
        skip_special_tokens=True,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        structured_outputs=structured_outputs(sampling.constraint) if sampling.constraint else None,
        extra_args={KEY: mixtures},
        **drawn,
    )


def scoring_params(last: int, mixtures: str = "") -> Any:
    """Return vLLM's `SamplingParams` for the log probabilities of a prompt's tokens and of token ``last`` after it.

    ``mixtures``: of `codec.encode`.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        logprob_token_ids=[last],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={KEY: mixtures},
    )


def structured_outputs(constraint: Constraint) -> Any:
    """Return a constraint as vLLM passes it to llguidance, with the native engine's style of JSON."""
    from vllm.sampling_params import StructuredOutputsParams

    if constraint.kind != "json_schema":
        return StructuredOutputsParams(**{constraint.kind: constraint.text})
    schema = json.loads(constraint.text)
    if not isinstance(schema, dict):  # true and false are schemas too
        schema = {} if schema else {"not": {}}
    return StructuredOutputsParams(json={**schema, _STYLE_KEY: JSON_STYLE | schema.get(_STYLE_KEY, {})})


def completion(decoder: Decoder, seq: Sequence, output: Any) -> Outcome:
    """Return the answer of vLLM's `CompletionOutput` by the rules of the native engine.

    The decoder appends its tokens one by one, so the end of an answer, its cut text and its counts are the same.
    """
    for token, logprobs in zip(output.token_ids, output.logprobs, strict=True):
        append_token(decoder, seq, token, logprobs)
        if seq.finish_reason:
            break
    end_answer(seq, output)
    return decoder.outcome(seq)


def append_token(decoder: Decoder, seq: Sequence, token: int, logprobs: Any) -> None:
    """Append a token to a sequence with the log probabilities of its step, as vLLM reports them by token."""
    logprob = logprobs[token].logprob
    if seq.sampling.logprobs is not None:
        found = [(other, value.logprob) for other, value in logprobs.items()]
        found.sort(key=lambda pair: (-pair[1], pair[0]))
        seq.logprobs.append((logprob, found[: seq.sampling.logprobs]))
    decoder.append(seq, token, logprob)


def end_answer(seq: Sequence, output: Any) -> None:
    """Finish a sequence as vLLM's last `CompletionOutput` says, unless one of its tokens has finished it."""
    if output.finish_reason not in ("stop", "length"):
        seq.fail(Failure("EngineFailed", f"vLLM ended the answer with {output.finish_reason!r}"))
    seq.finish_reason = seq.finish_reason or output.finish_reason


def choice_score(output: Any, tokens: SequenceOf[int]) -> float:
    """Return the sum of the log probabilities of the tokens of a choice.

    ``output``: vLLM's `RequestOutput` for the prompt followed by all tokens but the last, with `scoring_params` of the
    last one.
    """
    count = len(tokens) - 1
    steps = [*(output.prompt_logprobs[-count:] if count else []), output.outputs[0].logprobs[0]]
    return float(sum(logprobs[token].logprob for logprobs, token in zip(steps, tokens, strict=True)))
