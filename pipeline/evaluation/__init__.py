"""Metrics over the outputs of a run, and the comparison of ways to choose mixtures over a suite."""

from .bootstrap import BootstrapSettings
from .comparison import Comparison, ComparisonSettings
from .configurations import Configuration, check_adapters, configurations
from .report import Evaluation, write_evaluation
from .runs import read_answers, read_reference
from .sentence_routing import sentence_configuration
from .setup import SetupSettings, load_setup
from .suite import SUITES, load_suite
from .text_metrics import cleaned, normalised

__all__ = [
    "SUITES",
    "BootstrapSettings",
    "Comparison",
    "ComparisonSettings",
    "Configuration",
    "Evaluation",
    "SetupSettings",
    "check_adapters",
    "cleaned",
    "configurations",
    "load_setup",
    "load_suite",
    "normalised",
    "read_answers",
    "read_reference",
    "sentence_configuration",
    "write_evaluation",
]
