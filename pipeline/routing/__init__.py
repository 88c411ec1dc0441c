"""Routers: which adapters answer a prompt, and with which weights (DLP-LoRA, arXiv 2410.01497).

This module exports settings alone, so that the config does not load torch; routers are imported from their modules.
"""

from .parts import PartSettings
from .policy import RoutingPolicy, WeightRule
from .sentences import SentenceSettings

__all__ = ["PartSettings", "RoutingPolicy", "SentenceSettings", "WeightRule"]
