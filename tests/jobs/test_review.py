"""`loraloom review`: the file that people correct, and its way back into evaluation and training."""

import csv
import json
from pathlib import Path

import pytest

from jobs import evaluate, review
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Conversation
from pipeline.storage.input.labelled import read_examples, read_table
from pipeline.training import encode_examples
from tests.evaluation.test_review import make_run, row

PROMPT = 'Is "this"\na question, or <b>not</b>?'


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path: Path) -> str:
    rows = [row("007", "a:1.0", 0.5, output="yes"), row("8", "a:1.0", 0.9, output='no, "never"\nagain')]
    return make_run(str(tmp_path / "run"), rows)


def test_a_corrected_file_is_a_reference_and_training_data(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"id": "007", "prompt": "Is \\"this\\"\\na question, or <b>not</b>?"}\n{"id": "8", "prompt": "b"}\n'
    )
    to = tmp_path / "look.csv"
    assert review.main(["--run", run, "--to", str(to), "--input", str(source)]) == 0
    assert "2 of 2 answers, 1 mixtures" in capsys.readouterr().out
    first, second = rows_of(to)
    assert (first["id"], first["task"], first["prompt"], first["output"], first["answer"]) == (
        "007",
        "a",
        PROMPT,
        "yes",
        "",
    )
    assert second["output"] == 'no, "never"\nagain'
    to.write_text(to.read_text().replace("yes,,", "yes,Yes,"))
    assert evaluate.main(["--run", run, "--reference", str(to)]) == 0
    assert "100.0%" in capsys.readouterr().out
    [known, unknown] = read_table(str(to), ["task", "prompt", "answer"])
    assert (known["prompt"], known["answer"], unknown["answer"]) == (PROMPT, "Yes", None)


def test_conversations_come_back_as_they_were(run: str, tmp_path: Path, tiny_model: Path) -> None:
    """The router and the engine saw messages, and the training that uses the corrected file sees the same."""
    given = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Red?"}]
    source, to, page = tmp_path / "in.jsonl", tmp_path / "look.csv", tmp_path / "look.html"
    source.write_text("".join(json.dumps({"id": name, "messages": given}) + "\n" for name in ("007", "8")))
    for file in (to, page):
        assert review.main(["--run", run, "--to", str(file), "--input", str(source)]) == 0
    assert "Be terse." in page.read_text()
    to.write_text(to.read_text().replace("yes,,", "yes,Yes,"))
    [known, _] = read_examples(str(to), ["task", "answer"])
    assert known["prompt"] == Conversation(given)
    [example] = encode_examples([known], prompts := PromptFormat(load_tokenizer(str(tiny_model))), 200)
    assert prompts.tokenizer.decode(example.prompt) == "<|system|>Be terse.\n<|user|>Red?\n<|assistant|>"


def test_a_page_shows_texts_as_they_are(run: str, tmp_path: Path) -> None:
    to = tmp_path / "look.html"
    assert review.main(["--run", run, "--to", str(to), "--rows", "1"]) == 0
    page = to.read_text()
    assert "1 of 2 answers" in page
    assert "<pre>yes</pre>" in page
    with pytest.raises(UserError, match=r"look\.html exists"):  # the corrections in it may be of hours
        review.main(["--run", run, "--to", str(to)])
    assert to.read_text() == page


def test_texts_of_others_cannot_leave_their_place_in_the_page(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    run, to = make_run(str(tmp_path / "run"), [row(bad, "a:1.0", 0.5, output=bad)]), tmp_path / "look.html"
    assert review.main(["--run", run, "--to", str(to)]) == 0
    assert bad not in to.read_text()


@pytest.mark.parametrize(("to", "message"), [("look.txt", "ends with neither .csv nor .html"), ("look", "neither")])
def test_another_file_type_is_refused(run: str, tmp_path: Path, to: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        review.main(["--run", run, "--to", str(tmp_path / to)])


def test_csv_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,answer,n\n007,NA,1\n1e3,"",2\n')
    assert read_table(str(path), ["id", "answer"]) == [
        {"id": "007", "answer": "NA", "n": "1"},
        {"id": "1e3", "answer": None, "n": "2"},
    ]
