"""Ask vLLM, as it is installed, whether it runs a model with adapters."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

_ROOT = Path(__file__).resolve().parents[3]
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Environment variables with which vLLM logs errors alone, and reports nothing to its makers."""
_ASK = f"import sys; from {__name__} import problem_here; print(problem_here(sys.argv[1:]))"


def model_problem(config: Any) -> str:
    """Return why vLLM cannot run a model with adapters; empty if it can. ``config``: the model's, of transformers.

    A process of its own asks: vLLM loads for many seconds, sets environment variables, and models may touch the GPU.
    """
    command = [sys.executable, "-c", _ASK, *(config.architectures or [type(config).__name__])]
    asked = subprocess.run(command, cwd=_ROOT, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    if asked.returncode:
        said = asked.stderr.strip() or f"exit code {asked.returncode}"
        return f"vLLM does not load: {said.splitlines()[-1]}"
    return asked.stdout.splitlines()[-1]


def problem_here(architectures: list[str]) -> str:
    """Return the problem of `model_problem`, in this process."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    from .mixing.plugin import check_plugin

    try:
        check_plugin()
    except UserError as error:
        return str(error)
    known = [name for name in architectures if name in ModelRegistry.models]
    if not known:
        return f"vLLM has no model {architectures[0]}"
    if not supports_lora(ModelRegistry.models[known[0]].load_model_cls()):
        return f"vLLM takes no adapters for {known[0]}"
    return ""
