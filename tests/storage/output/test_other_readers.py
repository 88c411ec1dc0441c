"""Others read the output as it is, and this reads what others write: Hugging Face datasets, DuckDB."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs import export
from pipeline.errors import UserError
from pipeline.storage import read_dead, read_run
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split
from pipeline.storage.output.dataset_card import write_card
from pipeline.storage.output.run import RUN, RunFolder
from tests.report.make import make_run
from tests.storage import user_error

datasets = pytest.importorskip("datasets")
duckdb = pytest.importorskip("duckdb")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run with its card."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    url = str(tmp_path / "run")
    make_run(url, 1100)
    folder = RunFolder(url)
    write_card(folder, folder.read_json(RUN) or {})
    return url


def by_id(rows: Any) -> dict[str, Any]:
    return {row["id"]: row["output"] for row in rows}


def test_datasets_loads_the_output_as_it_is(run: str, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(run, split="train", cache_dir=str(tmp_path / "cache"))
    assert by_id(loaded) == by_id(read_run(run).to_table().to_pylist())
    assert loaded.features["adapters"].feature.dtype == "string"
    dead = datasets.load_dataset(run, "dead", split="train", cache_dir=str(tmp_path / "cache"))
    assert Counter(dead["error_type"]) == Counter(read_dead(run).to_table()["error_type"].to_pylist())


def test_duckdb_reads_the_output_as_it_is(run: str) -> None:
    found = duckdb.sql(f"select id, output, len(adapters) as n from '{run}/data/*.parquet'").fetchall()
    table = read_run(run).to_table()
    expected = zip(
        table["id"].to_pylist(), table["output"].to_pylist(), map(len, table["adapters"].to_pylist()), strict=True
    )
    assert sorted(found) == sorted(expected)


def test_the_card_says_what_is_there(run: str) -> None:
    text = Path(run, "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert [part["config_name"] for part in head["configs"]] == ["default", "dead"]
    assert head["size_categories"] == ["1K<n<10K"]
    for name in read_run(run).schema.names:
        assert f"| `{name}` |" in text


def test_rows_are_parted_by_a_column(run: str, tmp_path: Path) -> None:
    to = str(tmp_path / "parted")
    command = ["--run", run, "--to", to, "--format", "parquet", "--partition-by", "finish_reason"]
    assert export.main(command) == 0
    assert sorted(path.name for path in Path(to).iterdir()) == ["finish_reason=length", "finish_reason=stop"]
    found = duckdb.sql(
        f"select id, output, finish_reason from read_parquet('{to}/*/*.parquet', hive_partitioning=true)"
    )
    table = read_run(run).to_table(columns=["id", "output", "finish_reason"])
    assert sorted(found.fetchall()) == sorted(tuple(row.values()) for row in table.to_pylist())
    with pytest.raises(UserError, match="is not empty"):
        export.main(command)
    for wrong, said in (
        ("color", "has no column 'color'"),
        ("id", "has more than 1024 values"),
        ("weights", "holds lists"),
    ):
        with pytest.raises(UserError, match=said):
            export.main([*command[:3], f"{to}-{wrong}", *command[4:7], wrong])


def test_rows_are_lines(run: str, tmp_path: Path) -> None:
    rows, errors = tmp_path / "new" / "rows.jsonl", tmp_path / "errors.jsonl"
    assert export.main(["--run", run, "--to", str(rows), "--format", "jsonl"]) == 0
    assert by_id(map(json.loads, rows.open())) == by_id(read_run(run).to_table().to_pylist())
    command = ["--run", run, "--to", str(rows), "--format", "openai_batch", "--errors", str(errors)]
    assert export.main(command) == 0
    lines = [json.loads(line) for line in rows.open()]
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert answers == by_id(read_run(run).to_table().to_pylist())
    dead = Counter(json.loads(line)["error"]["code"] for line in errors.open())
    assert dead == Counter(read_dead(run).to_table()["error_type"].to_pylist())
    for wrong in (["--partition-by", "id"], ["--errors", "x"]):
        with pytest.raises(UserError, match="goes with --format"):
            export.main(["--run", run, "--to", "x", "--format", "jsonl", *wrong])


def records_of(url: str, rows: int = 100) -> list[Any]:
    plan, found = plan_input(url, rows, Columns()), []
    for window in range(plan.windows):
        for split in plan.splits(window):
            found += read_split(url, split, Columns(), plan.duplicates_of(window))
    return found


ROWS = [{"id": f"r{i}", "prompt": f"p{i}", "label": i % 3, "tags": ["a"] * (i % 2)} for i in range(2500)]


def test_a_saved_folder_is_input(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    (tmp_path / "saved" / "data-left-over.arrow").write_bytes(b"of an earlier data set")
    found = records_of(str(tmp_path / "saved"), 700)
    assert [(r.id, r.prompt, r.passed) for r in found] == [
        (row["id"], row["prompt"], {"label": row["label"], "tags": row["tags"]}) for row in ROWS
    ]
    assert records_of(str(tmp_path / "saved" / "data-00000-of-00002.arrow"))[-1].id == "r1249"
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with user_error("lacks data-00001-of-00002.arrow", "save the data set again"):
        records_of(str(tmp_path / "saved"))


def test_splits_of_a_saved_folder_are_not_mixed(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS[:5])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "saved"))
    with user_error("holds the splits train, test; give one of them", "saved/train"):
        records_of(str(tmp_path / "saved"))
    assert len(records_of(str(tmp_path / "saved" / "test"))) == 5


def test_a_data_set_is_loaded_by_its_id(run: str) -> None:
    # A folder with a card is to the library what a hub id is.
    found = records_of(f"hub:{run}?split=train")
    assert {r.id for r in found} == set(by_id(read_run(run).to_table().to_pylist()))
    assert {r.id for r in records_of(f"hub:{run}?config=dead")} == set(read_dead(run).to_table()["id"].to_pylist())


@pytest.mark.parametrize(
    ("end", "said"),
    [("?split=train[:10]", "give hub:NAME?split=SPLIT"), ("?part=1", "give hub:NAME"), ("?split=nope", "cannot load")],
)
def test_what_is_no_data_set_is_refused(run: str, end: str, said: str) -> None:
    with user_error(said):
        records_of(f"hub:{run}{end}")


def test_conversations_in_parquet_are_messages(tmp_path: Path) -> None:
    import pyarrow as pa

    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"id": "a", "messages": talk}, {"id": "b", "messages": talk[1:]}, {"id": "c", "messages": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    a, b, c = records_of(str(tmp_path / "in.parquet"))
    assert (a.prompt.messages, b.prompt.messages) == (talk, talk[1:])
    assert c.dead.error_type == "BadMessages"


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1\0\0", b"\xff\xff\xff\xff\x10\0\0\0short", b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 9]
)
def test_what_is_no_arrow_stream_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with user_error("input: ", "a.arrow"):
        records_of(str(tmp_path))
