"""The configuration that routes every sentence of prompt and answer for itself."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.engine import Request
from pipeline.models import PromptFormat
from pipeline.routing import Router, RoutingPolicy, SentenceRouter, SentenceSettings, route_sentences
from pipeline.routing.sentences import prompt_sentences

from .configurations import Asked, Configuration


def sentence_configuration(
    prompts: PromptFormat, router: Router, policy: RoutingPolicy, settings: SentenceSettings
) -> Configuration:
    """Mixtures by sentence, with ``policy`` (the gate decides which sentences say nothing of their task)."""
    policy = replace(policy, gate=True)

    def requests(asked: Sequence[Asked]) -> list[Request]:
        head, tail = map(len, prompts.template_tokens(False))
        placed = prompts.encode_with_offsets([one.question.prompt for one in asked])
        divided = [prompt_sentences(one.text, one.ends, head, tail, settings) for one in placed]
        tokens = [one.tokens for one in placed]
        routes = route_sentences(router, policy, tokens, divided, settings.context_sentences)
        return [
            Request(one.question.id, ids, route.mixture, route.spans, route.context)
            for one, ids, route in zip(asked, tokens, routes, strict=True)
        ]

    return Configuration(
        name=f"sentence p={policy.top_p:g}",
        requests=requests,
        variant=f"{settings} {policy} {router.fingerprint}",
        generate={"reroute": SentenceRouter(router, policy, settings, prompts.tokenizer)},
    )
