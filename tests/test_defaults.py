"""Each default is written once: in a YAML file of conf/, or in a dataclass of the library, never in both."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.compose import CONF_DIR, PROJECT_DIR
from conf.defaults import CLASSES, default_of

# Keys that are called like a field and are no default of it.
OTHER_THINGS = {
    "evaluate.yaml: max_new_tokens and Sampling.max_new_tokens",  # answers of a suite are shorter
    # Options that are not the default.
    *(f"input/{layout}.yaml: layout and Columns.layout" for layout in ("openai_batch", "sharegpt", "alpaca")),
    "model/smollm2-135m.yaml: prompt_format and PromptSettings.prompt_format",
    # Pools of a cluster; the fields' defaults are for stages whose tasks are no actors.
    *(f"cluster/local.yaml: stages.route.{limit}_actors and StageResources.{limit}_actors" for limit in ("min", "max")),
    *(
        f"cluster/local.yaml: stages.generate.{limit}_actors and StageResources.{limit}_actors"
        for limit in ("min", "max")
    ),
    *(
        f"cluster/kuberay.yaml: stages.generate.{limit}_actors and StageResources.{limit}_actors"
        for limit in ("min", "max")
    ),
    # Trainings and the bootstrap are no engines.
    "evaluate.yaml: bootstrap.seed and BackendSettings.seed",
    *(f"train_{what}.yaml: training.seed and BackendSettings.seed" for what in ("adapters", "router")),
    "train_router.yaml: centroids.seed and BackendSettings.seed",
    # Examples of a class, and rows that a report shows.
    "train_router.yaml: centroids.examples and OutputSample.examples",
    "train_router.yaml: training.examples and OutputSample.examples",
    *(
        f"train_{what}.yaml: training.batch_size and {engine}.batch_size"
        for what in ("adapters", "router")
        for engine in ("BackendSettings", "VllmSettings")
    ),
}


def written_in_yaml() -> Iterator[tuple[str, str, Any]]:
    """Each file and dotted key with a value of its own, not one of `conf.defaults`."""
    for file in sorted(CONF_DIR.rglob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        values.pop("defaults", None)
        yield from ((file.relative_to(CONF_DIR).as_posix(), key, value) for key, value in leaves(values))


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif value not in (None, {}) and not str(value).startswith("${default:"):  # none and nothing are no choice
            yield f"{prefix}{key}", value


def fields_with_defaults(source: str) -> Iterator[str]:
    """``CLASS.FIELD`` of the dataclasses in a module whose field has a default, other than None."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for field in node.body:
                if not isinstance(field, ast.AnnAssign) or field.value is None:
                    continue
                if ast.unparse(field.value) != "None" and "ClassVar" not in ast.unparse(field.annotation):
                    yield f"{node.name}.{ast.unparse(field.target)}"


def repeated(yaml_keys: list[tuple[str, str, Any]], fields: list[str]) -> list[str]:
    """Keys that are the name of a field, alone or behind that of their group (`window.records`: `window_records`)."""
    found = []
    for file, key, _ in yaml_keys:
        group, _, name = key.rpartition(".")
        names = (name, f"{group.rpartition('.')[2]}_{name}", f"{Path(file).stem}_{name}")
        found += [f"{file}: {key} and {field}" for field in fields if field.partition(".")[2] in names]
    return found


def all_fields() -> list[str]:
    files = sorted((PROJECT_DIR / "pipeline").rglob("*.py"))
    return [field for file in files for field in fields_with_defaults(file.read_text())]


@pytest.mark.long
def test_no_default_is_written_twice() -> None:
    found = repeated(list(written_in_yaml()), all_fields())
    assert [line for line in found if line not in OTHER_THINGS] == []
    assert set(found) >= OTHER_THINGS, "an exception that is none any more"


def test_the_check_finds_a_repeated_default() -> None:
    source = "@dataclass(frozen=True)\nclass A:\n    x: int = 1\n    y: int\n    window_records: int = 3\n"
    fields = list(fields_with_defaults(source))
    assert fields == ["A.x", "A.window_records"]
    keys = [("generate.yaml", "group.x", 1), ("generate.yaml", "y", 2), ("generate.yaml", "window.records", 3)]
    assert repeated(keys, fields) == [
        "generate.yaml: group.x and A.x",
        "generate.yaml: window.records and A.window_records",
    ]


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_are_those_of_the_classes(cls: str) -> None:
    texts = "".join(file.read_text() for file in CONF_DIR.rglob("*.yaml"))
    names = [part.partition("}")[0] for part in texts.split(f"${{default:{cls}.")[1:]]
    assert names
    for name in names:
        default = getattr(CLASSES[cls](), name)
        assert default_of(f"{cls}.{name}") == (list(default) if isinstance(default, tuple) else default)
