"""What the CPU image does, without a Docker engine: its install steps in a clean environment, and its entrypoint."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.cluster.head import ROOT
from tests.docker.dockerfile import stage

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.ray]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with what the image's install step puts into it, from what is copied into the image alone."""
    folder = tmp_path_factory.mktemp("image")
    context, environment = folder / "app", folder / "venv"
    context.mkdir()
    for words in re.findall(r"^COPY (.+)$", stage("build"), re.MULTILINE):
        for name in words.split()[:-1]:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, context / name)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    [step] = re.findall(r"pip install (.+)$", stage("build-cpu"), re.MULTILINE)
    words = [word for word in shlex.split(step) if not word.startswith("--prefix")]
    index = words.index("--extra-index-url")  # of PyTorch's CPU builds; the index here has them itself
    del words[index : index + 2]
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", *words], cwd=context, check=True)
    shutil.rmtree(context)
    return environment / "bin"


def entrypoint() -> list[str]:
    [words] = re.findall(r"^ENTRYPOINT (.+)$", stage("base"), re.MULTILINE)
    found: list[str] = json.loads(words)
    return found


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{installed}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environment = {"PATH": path, "HOME": str(folder), "LORALOOM_CACHE": str(folder / "cache"), "TMPDIR": "/tmp"}
    command = [str(installed / entrypoint()[0]), *entrypoint()[1:], *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_default_command_explains_itself(installed: Path, tmp_path: Path) -> None:
    [words] = re.findall(r"^CMD (.+)$", stage("base"), re.MULTILINE)
    done = run(installed, tmp_path, *json.loads(words))
    assert done.returncode == 0, done.stderr
    assert "--input" in done.stdout
    assert run(installed, tmp_path, "jobs.submit", "--help").returncode == 0


def test_the_entrypoint_runs_a_job(
    installed: Path, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of("red", 1, seed=i)[0]} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "generation.max_new_tokens=4"]
    custom = ["model=custom", f"model.path={tiny_model}", "model.dtype=fp32", "bank=custom", f"bank.path={tiny_bank}"]
    done = run(installed, tmp_path, "jobs.generate", *words, *custom, "router=custom", f"router.path={tiny_router}")
    assert done.returncode == 0, done.stderr
    assert "3 in, 3 committed, 0 dead" in done.stdout


def test_the_image_has_the_packages_that_are_checked_for_on_the_head(installed: Path, tmp_path: Path) -> None:
    names = ("bitsandbytes", "gguf", "llguidance", "s3fs", "transformers")
    check = f"from importlib.util import find_spec; assert all(map(find_spec, {names}))"
    done = subprocess.run(
        [installed / "python", "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
