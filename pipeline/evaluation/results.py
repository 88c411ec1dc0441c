"""Result files: figures with the machine, the versions and the time they were made."""

import json
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "peft", "ray", "pyarrow", "numpy", "sacrebleu", "rouge-score")


def write_results(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON, with what is needed to judge and to repeat them; whole or not at all."""
    about = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"processor": _processor(), "cpus": os.cpu_count(), "system": platform.system()} | _gpu(),
        "versions": {"python": platform.python_version()} | _versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(about | figures, indent=1) + "\n")
    part.replace(path)


def _gpu() -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _versions() -> dict[str, str]:
    """Of the packages that are there: an engine is measured without those that the pipeline needs."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
