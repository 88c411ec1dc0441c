"""Questions with known answers: the demo's suites, or any file of an input format with their columns."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.storage.input.columns import row_text
from pipeline.storage.input.labelled import read_table
from pipeline.storage.store.redact import masked

from .text_metrics import cleaned, normalised

Kind = Literal["mcq", "qa", "composite"]
SUITES = ("suite-test", "composite2-test", "composite3-test")


@dataclass(frozen=True)
class Question:
    """One question and its right ``answers``: one, or one for each question of a composite.

    ``group``: metrics are averaged within it first; its task, or the size or layout of the composite. ``tasks``: names
    of the adapters made for it.
    """

    id: str
    group: str
    kind: Kind
    answers: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    prompt: str = ""
    choices: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """Return the answer as one text; the answers of a composite are numbered, one a line."""
        if self.kind != "composite":
            return self.answers[0]
        return "\n".join(f"{number}. {answer}" for number, answer in enumerate(self.answers, 1))


@dataclass(frozen=True)
class Suite:
    """Some or all questions of a file; ``fingerprint`` is that of the whole file, so that all parts share one cache."""

    name: str
    fingerprint: str
    questions: tuple[Question, ...]

    @property
    def composite(self) -> bool:
        """Whether its prompts hold several questions."""
        return any(question.kind == "composite" for question in self.questions)


def load_suite(name: str, folder: Path, tasks: Iterable[str] | None = None, limit: int | None = None) -> Suite:
    """Read the suite ``name`` in a folder, or the one at a URL; raise `UserError` if it is not as it should be.

    ``tasks``: only questions all of whose tasks are among these. ``limit``: the first N of each group.
    """
    url, short = _located(name, folder)
    rows, url = read_table(url, ["id", "prompt"]), masked(url)
    _check_columns(rows, url)
    questions = [_question(row) for row in rows]
    _check_questions(questions, url)
    chosen = _limited(_of_tasks(questions, tasks, url), limit)
    digest = hashlib.sha256("\n".join(map(row_text, rows)).encode()).hexdigest()[:16]
    return Suite(short, digest, tuple(chosen))


def _located(name: str, folder: Path) -> tuple[str, str]:
    if name in SUITES:
        return str(folder / f"{name}.parquet"), name
    if "/" not in name and "." not in name:
        raise UserError(f"evaluate: unknown suite {name!r}; known are {', '.join(SUITES)}, or give the URL of a file")
    path = name.partition("?")[0] if "://" in name else name  # a query may be a signature
    return name, path.rstrip("/").rsplit("/", 1)[-1].split(".")[0]


def _check_columns(rows: Sequence[dict[str, Any]], url: str) -> None:
    if not rows:
        raise UserError(f"evaluate: no question in {url}")
    has = rows[0].keys()
    needed = ("tasks", "answers") if "tasks" in has else ("task", "kind", "choices", "answer")
    missing = [column for column in needed if column not in has]
    if missing:
        raise UserError(f"evaluate: {url} lacks the column(s) {', '.join(missing)}; it has {', '.join(has)}")
    filled = [column for column in ("id", "prompt", *needed) if column != "choices"]
    empty = sum(any(row[column] in (None, []) for column in filled) for row in rows)
    if empty:
        raise UserError(f"evaluate: {url}: {empty} rows have no value in one of {', '.join(filled)}")


def _question(row: dict[str, Any]) -> Question:
    if "tasks" in row:
        answers = tuple(cleaned(answer) for answer in row["answers"])
        group = row.get("group") or f"composite{len(answers)}"
        return Question(str(row["id"]), group, "composite", answers, tuple(row["tasks"]), row["prompt"])
    return Question(
        id=str(row["id"]),
        group=row["task"],
        kind="mcq" if row["kind"] == "mcq" else "qa",
        answers=(cleaned(row["answer"]),),
        tasks=(row["task"],),
        prompt=row["prompt"],
        choices=tuple(cleaned(choice) for choice in row["choices"] or ()),
    )


def _check_questions(questions: list[Question], url: str) -> None:
    unlisted = [
        question.id
        for question in questions
        if question.kind == "mcq" and normalised(question.reference) not in map(normalised, question.choices)
    ]
    if unlisted:
        raise UserError(
            f"evaluate: {url}: the answer is none of the choices in {len(unlisted)} rows (id {unlisted[0]!r})"
        )
    repeated = len(questions) - len({question.id for question in questions})
    if repeated:
        raise UserError(f"evaluate: {url}: {repeated} rows repeat the id of another")


def _of_tasks(questions: list[Question], tasks: Iterable[str] | None, url: str) -> list[Question]:
    if tasks is None:
        return questions
    wanted = set(tasks)
    has = {task for question in questions for task in question.tasks}
    if wanted - has:
        raise UserError(
            f"evaluate: {url} has no task {', '.join(sorted(wanted - has))}; it has {', '.join(sorted(has))}"
        )
    chosen = [question for question in questions if wanted.issuperset(question.tasks)]
    if not chosen:
        raise UserError(f"evaluate: {url} has no question whose tasks are all among {', '.join(sorted(wanted))}")
    return chosen


def _limited(questions: list[Question], limit: int | None) -> list[Question]:
    counts: dict[str, int] = defaultdict(int)
    chosen = []
    for question in questions:
        counts[question.group] += 1
        if limit is None or counts[question.group] <= limit:
            chosen.append(question)
    return chosen
