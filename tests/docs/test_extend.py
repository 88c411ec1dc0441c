"""docs/extend.md: the files of its table exist, and an implementation is imported by its registry alone."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

_TABLE = re.compile(r"^\| an? .*", re.M)


def rows() -> list[str]:
    return _TABLE.findall((ROOT / "docs" / "extend.md").read_text())


def importers(module: str) -> set[str]:
    """Files outside a module or package that import it, or something from inside it."""
    own = module.replace(".", "/")
    sources = [path for folder in ("pipeline", "jobs", "conf") for path in (ROOT / folder).rglob("*.py")]
    paths = {path.relative_to(ROOT).as_posix(): path for path in sources}
    return {
        name
        for name, path in paths.items()
        if not name.startswith((f"{own}/", f"{own}.py"))
        and any(found == module or found.startswith(f"{module}.") for found in imported(path))
    }


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, and of what it imports from them."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def test_the_files_of_the_table_exist() -> None:
    assert len(rows()) == 5
    for row in rows():
        files = re.findall(r"`((?:pipeline|tests|conf)/[\w/.]+)`", row.replace("NAME", "native"))
        assert len(files) >= 3
        assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("implementation", "registry"),
    [
        ("pipeline.storage.input.formats.csv", "pipeline/storage/input/formats/__init__.py"),
        ("pipeline.storage.input.formats.arrow", "pipeline/storage/input/formats/__init__.py"),
        ("pipeline.evaluation.text_metrics.chrf", "pipeline/evaluation/metrics.py"),
        ("pipeline.engine.vllm", "pipeline/engine/registry.py"),
        ("pipeline.cluster.launchers.ray_jobs", "pipeline/cluster/launchers/__init__.py"),
    ],
)
def test_only_the_registry_imports_an_implementation(implementation: str, registry: str) -> None:
    assert importers(implementation) == {registry}
    assert any(f"`{registry}`" in row for row in rows())
