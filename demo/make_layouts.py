"""Write `demo/data/layouts-dev.parquet` and `layouts-test.parquet`: test prompts that ask several things, in layouts.

    python demo/make_layouts.py

The composite suites number their questions. Here each layout joins two or three questions of different tasks in another
way. Rules for cutting prompts are chosen without `layouts-test`, the harder half, which is for testing only. A row has
the columns of the composite suites, `group` (its layout), and `starts`: the character where each question starts.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"
PROMPTS = 40  # of each layout
MAX_CHARACTERS = 2400  # of a prompt, so that it fits the model's context with its answer
SEED = 0
Row = dict[str, Any]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("tasks", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("starts", pa.list_(pa.int32())),
        ("answers", pa.list_(pa.string())),
    ]
)


def main() -> None:
    """Make both files; the same ones each time."""
    rows = pq.read_table(DATA / "suite-test.parquet").to_pylist()
    for name, layouts in (("layouts-dev", DEV), ("layouts-test", TEST)):
        made = [row for layout, how in layouts.items() for row in _joined(layout, how, rows)]
        if layouts is TEST:
            made += _about_one_text(rows + pq.read_table(DATA / "suite-train.parquet").to_pylist())
        pq.write_table(pa.Table.from_pylist(made, schema=SCHEMA), DATA / f"{name}.parquet", compression="zstd")
        print(f"{name}: {len(made)} prompts")


@dataclass(frozen=True)
class Layout:
    """How questions are joined: ``head``, then each question behind its mark, with a ``separator`` between them.

    ``one_line``: a question is put on one line.
    """

    separator: str
    head: str = ""
    marks: Sequence[str] = ("", "", "")
    one_line: bool = False

    def join(self, questions: Sequence[str]) -> tuple[str, list[int]]:
        """Return the prompt, and the index of the character where each question starts, with its mark."""
        prompt, starts = self.head, []
        for mark, question in zip(self.marks, questions, strict=False):
            prompt += self.separator if prompt else ""
            starts.append(len(prompt))
            prompt += mark + (" ".join(question.split()) if self.one_line else question.strip())
        return prompt, starts


DEV = {
    "blank lines": Layout("\n\n"),
    "bullets": Layout("\n", "Please do all of the following:", ("- ",) * 3),
    "headings": Layout("\n\n", "", ("Question 1: ", "Question 2: ", "Question 3: ")),
}
TEST = {
    "lines": Layout("\n"),
    "letters": Layout(" ", "I need help with a few things.", ("(a) ", "(b) ", "(c) "), one_line=True),
    "paragraph": Layout(" ", one_line=True),
}


def _joined(name: str, layout: Layout, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield prompts of two and of three questions in turn, each of another task."""
    chance = random.Random(f"{SEED} {name}")
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    made = 0
    while made < PROMPTS:
        questions = [chance.choice(by_task[task]) for task in chance.sample(sorted(by_task), 2 + made % 2)]
        prompt, starts = layout.join([question["prompt"] for question in questions])
        if len(prompt) <= MAX_CHARACTERS:
            answers = [question["answer"] for question in questions]
            yield _row(name, made, [question["task"] for question in questions], prompt, starts, answers)
            made += 1


def _about_one_text(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield prompts that ask three things about one text, each as another task asks it."""
    by_text: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["task"] in ("disfl_qa", "question_selection"):
            text = _field(row, "[Cc]ontext")
            by_text[re.sub(r"\W", "", text).lower()].setdefault(row["task"], row)
    texts = [by_task for by_task in by_text.values() if len(by_task) == 2 and "-test-" in by_task["disfl_qa"]["id"]]
    for number, found in enumerate(texts[:PROMPTS]):
        fluent, selection = found["disfl_qa"], found["question_selection"]
        short = _field(selection, "Short Answer")
        items = [
            f"Question: {_field(fluent, 'Question')}",
            f"Select the most appropriate question which has this short answer as its answer. Short Answer: {short}\n"
            + "\n".join(f"choice: {choice}" for choice in selection["choices"]),
            f"What is the answer to the question, assuming the text is true. Question: {selection['answer']}",
        ]
        layout = Layout("\n", _field(fluent, "context") + "\n", ("1. ", "2. ", "3. "))
        tasks = ["disfl_qa", "question_selection", "contextual_parametric_knowledge_conflicts"]
        yield _row("one text", number, tasks, *layout.join(items), [fluent["answer"], selection["answer"], short])


def _field(row: Row, name: str) -> str:
    """Return what follows a name in a prompt, up to the next name or the choices."""
    found = re.search(rf"{name}: (.*?)(?= Context: |\ncontext: |\nchoice: |\nAnswer:$)", row["prompt"], re.DOTALL)
    assert found is not None, row["prompt"]
    return found[1].strip()


def _row(layout: str, number: int, tasks: list[str], prompt: str, starts: list[int], answers: list[str]) -> Row:
    name = f"{layout.replace(' ', '-')}-{number:02d}"
    return {"id": name, "group": layout, "tasks": tasks, "prompt": prompt, "starts": starts, "answers": answers}


if __name__ == "__main__":
    main()
