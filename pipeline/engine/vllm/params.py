"""Settings of a request as vLLM takes them, and what comes of it as the other engine would have answered."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engine.core.decoder import Decoder
from pipeline.engine.request import Constraint, Failure, Request, Sampling
from pipeline.engine.sampling.constraints import JSON_STYLE
from pipeline.engine.sampling.sampler import request_generator
from pipeline.engine.sequence import StepLogprobs
from pipeline.records import Completion

_STYLE_KEY = "x-guidance"  # how llguidance is told, in a schema, how JSON is to be written


def sampling_params(request: Request, sampling: Sampling, seed: int, end_tokens: set[int]) -> Any:
    """vLLM's `SamplingParams` for one answer of a request; its seed is that of the native engine's generator.

    Text is vLLM's affair only where stop strings are to be looked for: else answers come as token ids.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    drawn = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p} if sampling.is_random else {}
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        temperature=sampling.temperature if sampling.is_random else 0.0,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop=list(sampling.stop),
        stop_token_ids=sorted(end_tokens.union(sampling.stop_token_ids)),
        logprobs=sampling.logprobs,
        seed=request_generator(request, sampling, seed).initial_seed(),
        detokenize=bool(sampling.stop),
        skip_special_tokens=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=structured_outputs(sampling.constraint) if sampling.constraint else None,
        **drawn,
    )


def scoring_params(last: int) -> Any:
    """vLLM's `SamplingParams` for the log probabilities of a prompt's own tokens, and of token ``last`` behind it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        logprob_token_ids=[last],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def structured_outputs(constraint: Constraint) -> Any:
    """A constraint as vLLM hands it to llguidance; JSON is written as the native engine lets it be."""
    from vllm.sampling_params import StructuredOutputsParams

    if constraint.kind != "json_schema":
        return StructuredOutputsParams(**{constraint.kind: constraint.text})
    schema = json.loads(constraint.text)
    if not isinstance(schema, dict):  # true and false are schemas too
        schema = {} if schema else {"not": {}}
    return StructuredOutputsParams(json={**schema, _STYLE_KEY: JSON_STYLE | schema.get(_STYLE_KEY, {})})


def completion(decoder: Decoder, request: Request, output: Any) -> Completion | Failure:
    """The answer that vLLM's `CompletionOutput` holds, by the rules of the native engine.

    Its tokens are put one by one to a row of the decoder: where an answer ends, what is cut off and how it is counted
    then are the same.
    """
    if output.finish_reason not in ("stop", "length"):
        return Failure("EngineFailed", f"vLLM ended the answer with {output.finish_reason!r}")
    seq = decoder.start(request)
    steps = output.logprobs or [None] * len(output.token_ids)
    for token, logprobs in zip(output.token_ids, steps, strict=True):
        if logprobs is not None:
            seq.logprobs.append(_step(token, logprobs, seq.sampling.logprobs or 0))
        decoder.append(seq, token)
        if seq.finish_reason:
            break
    seq.finish_reason = seq.finish_reason or output.finish_reason
    return decoder.outcome(seq)


def choice_score(output: Any, tokens: Sequence[int]) -> float:
    """Sum of the log probabilities of ``tokens``: the last ones of a prompt, and the one that was asked for behind it.

    ``output``: vLLM's `RequestOutput` for the prompt that ends with all of them but the last, by `scoring_params`.
    """
    count = len(tokens) - 1
    steps = [*(output.prompt_logprobs[-count:] if count else []), output.outputs[0].logprobs[0]]
    return float(sum(found[token].logprob for found, token in zip(steps, tokens, strict=True)))


def _step(token: int, found: Mapping[int, Any], count: int) -> StepLogprobs:
    top = sorted(((other, value.logprob) for other, value in found.items()), key=lambda pair: (-pair[1], pair[0]))
    return found[token].logprob, top[:count]
