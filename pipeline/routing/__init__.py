"""The mini-MLP router: which adapters answer a prompt, and with which weights (DLP-LoRA, arXiv 2410.01497)."""

from .model import RouterModel
from .policy import RoutingPolicy, WeightRule
from .router import Route, Router
from .training import RouterSettings, train_router

__all__ = ["Route", "Router", "RouterModel", "RouterSettings", "RoutingPolicy", "WeightRule", "train_router"]
