"""The mini-MLP router: which adapters answer a prompt, and with which weights (DLP-LoRA, arXiv 2410.01497)."""

from .explain import Explanation, explain
from .extend import Extension, add_class
from .model import RouterModel
from .policy import RoutingPolicy, WeightRule
from .rerouting import SentenceRouter
from .router import Route, Router
from .sentences import SentenceSettings
from .spans import SentenceRoute, route_sentences, shown_of
from .training import RouterSettings, train_router

__all__ = [
    "Explanation",
    "Extension",
    "Route",
    "Router",
    "RouterModel",
    "RouterSettings",
    "RoutingPolicy",
    "SentenceRoute",
    "SentenceRouter",
    "SentenceSettings",
    "WeightRule",
    "add_class",
    "explain",
    "route_sentences",
    "shown_of",
    "train_router",
]
