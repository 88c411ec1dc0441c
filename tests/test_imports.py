"""What a fresh process loads: commands answer at once, and tasks that need no model start without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HELP = "from jobs.__main__ import loraloom; from jobs._cli import run; run(loraloom, ['--help'], 'x')"
TASKS = "import pipeline.stages.read, pipeline.stages.regroup, pipeline.stages.commit"


@pytest.mark.parametrize(
    ("code", "never"),
    [
        pytest.param("import pipeline", {"torch", "ray", "pyarrow", "hydra"}, id="the package"),
        pytest.param(HELP, {"torch", "ray", "pyarrow", "hydra", "conf", "jobs.generate"}, id="--help"),
        pytest.param(
            "from jobs import generate; generate.main(['--show-config'])",
            {"torch", "ray"},
            id="--show-config",
            marks=pytest.mark.long,
        ),
        pytest.param("import pipeline.engine.registry", {"torch", "vllm", "transformers"}, id="the engines' registry"),
        pytest.param(TASKS, {"torch", "transformers"}, id="read, regroup and commit tasks", marks=pytest.mark.long),
        pytest.param(  # its process lives as long as the job
            "import pipeline.telemetry.incident_actor",
            {"ray", "pyarrow", "numpy", "fsspec", "torch"},
            id="the actor of the incidents",
        ),
    ],
)
def test_a_fresh_process_loads_only_what_it_needs(code: str, never: set[str]) -> None:
    code = f"import sys; {code}; print({never!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
