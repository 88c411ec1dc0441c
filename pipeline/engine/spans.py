"""Mixtures along the tokens of a request."""

from pipeline.records import Mixture, Spans

from .request import Request


def prompt_spans(request: Request) -> Spans:
    """Mixtures of the prompt's tokens, with or without sentences of its own."""
    return request.spans or ((0, request.mixture),)


def cut_spans(spans: Spans | list[tuple[int, Mixture]], start: int, stop: int) -> Spans:
    """The part of spans from ``start`` to ``stop``, counted from there; neighbours differ."""
    cut: list[tuple[int, Mixture]] = []
    for first, mixture in spans:
        if first >= stop:
            break
        place = max(first - start, 0)
        if cut and cut[-1][0] == place:
            cut.pop()
        if not cut or cut[-1][1] != mixture:
            cut.append((place, mixture))
    return tuple(cut)
