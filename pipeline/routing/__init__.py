"""Routers: which adapters answer a prompt, and with which weights (DLP-LoRA, arXiv 2410.01497)."""

from .explain import Explanation, explain
from .extension import Extension, add_class
from .loading import ROUTER_KINDS, load_router, load_router_for
from .mlp_router import MlpRouter
from .policy import RoutingPolicy, WeightRule
from .rerouting import SentenceRouter
from .router import Classification, Route, Router, tokenizer_fingerprint
from .sentence_routes import SentenceRoute, route_sentences, router_inputs
from .sentences import SentenceSettings
from .training import RouterSettings, train_router

__all__ = [
    "ROUTER_KINDS",
    "Classification",
    "Explanation",
    "Extension",
    "MlpRouter",
    "Route",
    "Router",
    "RouterSettings",
    "RoutingPolicy",
    "SentenceRoute",
    "SentenceRouter",
    "SentenceSettings",
    "WeightRule",
    "add_class",
    "explain",
    "load_router",
    "load_router_for",
    "route_sentences",
    "router_inputs",
    "tokenizer_fingerprint",
    "train_router",
]
