"""How a command ends that is told to stop while no window runs: while Ray starts, or when all is committed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STOPPED = """
import os, signal, time
import click
from jobs._cli import Job, run_job
from pipeline.cluster.connect import connect
@click.command("stopped", cls=Job)
def main():
    connect(None, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    return 0
run_job(main)
"""


@pytest.mark.ray
def test_sigterm_is_told_and_has_its_exit_code_also_outside_of_windows() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1].startswith("stopped: SIGTERM; committed records are kept")
    assert "Traceback" not in done.stderr
