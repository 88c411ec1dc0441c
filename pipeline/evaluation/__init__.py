"""Compute metrics of the outputs of runs, and compare ways to choose mixtures over a suite."""

from .bootstrap import BootstrapSettings
from .configurations import Configuration, check_adapters, configurations, sentence_configuration
from .metrics import METRICS, Metric
from .model_stack import load_model_stack
from .results import Evaluation, write_evaluation
from .runs import read_predictions, read_reference
from .suite import SUITES, load_suite
from .suite_runner import SuiteRunner

__all__ = [
    "METRICS",
    "SUITES",
    "BootstrapSettings",
    "Configuration",
    "Evaluation",
    "Metric",
    "SuiteRunner",
    "check_adapters",
    "configurations",
    "load_model_stack",
    "load_suite",
    "read_predictions",
    "read_reference",
    "sentence_configuration",
    "write_evaluation",
]
