"""The functions that docs/architecture.md names exist, and ARCHITECTURE.md names every module."""

import ast
import re

import pytest

from tests.docs.blocks import ROOT

_PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"([\w/]+\.py):([A-Za-z_][\w.]*\w)", _PAGE)))


def definitions(node: ast.AST, prefix: str = "") -> set[str]:
    """Qualified names of the functions and classes in a module."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            found |= {prefix + child.name} | definitions(child, f"{prefix}{child.name}.")
    return found


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_function_exists(file: str, name: str) -> None:
    folder = ROOT if file.startswith(("jobs/", "conf/")) else ROOT / "pipeline"
    assert name in definitions(ast.parse((folder / file).read_text()))


def test_there_are_functions_to_check() -> None:
    assert len(NAMED) > 30


def test_the_map_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text[text.index("```text\npipeline/") :].split("```")[1]
    named = set(re.findall(r"\w+", block))
    files = [path.relative_to(ROOT / "pipeline") for path in (ROOT / "pipeline").rglob("*.py")]
    # Of what the engines consist, docs/architecture.md says.
    outside = {file for file in files if file.parts[0] != "engine" or len(file.parts) == 2}
    parts = {part for file in outside for part in (*file.parts[:-1], file.stem) if part != "__init__"}
    per_format = {file.stem for file in outside if file.parent.name in ("formats", "launchers")}
    assert parts - per_format - named == set()
