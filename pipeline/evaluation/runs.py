"""The answers of a run of `jobs.generate`, with the references they are held against."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.storage import read_run
from pipeline.storage.input.labelled import read_table
from pipeline.storage.store.redact import masked

from .metrics import Answer
from .suite import Question
from .text_metrics import cleaned


@dataclass(frozen=True)
class Reference:
    """Right answers by record id, from the table at ``url``; ``rows`` hold its other columns too."""

    url: str
    rows: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class JudgedRun:
    """``unreferenced``: records of the run that have no right answer and are left out."""

    answers: list[Answer]
    unreferenced: int


def read_reference(url: str, answer: str) -> Reference:
    """The table of right answers; `UserError` for a missing column or a repeated id."""
    rows = read_table(url, ["id", answer])
    repeated = [name for name, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
    if repeated:
        raise UserError(f"evaluate: {masked(url)} gives {len(repeated)} id(s) more than once, {repeated[0]!r} first")
    return Reference(url, {str(row["id"]): row for row in rows})


def read_answers(url: str, answer: str, by: str, reference: Reference | None) -> JudgedRun:
    """The run's records that have a right answer: in the column ``answer`` of the reference or of the run itself.

    ``by``: column to group by. Multiple choice is a record whose `kind` is ``mcq``, or without such a column one that
    has `choices`.
    """
    dataset = read_run(url)
    columns = dataset.schema.names
    if reference is None and answer not in columns:
        raise UserError(
            f"evaluate: {masked(url)} has no column {answer!r}; it has {', '.join(columns)}"
            " (--answer, or --reference for a table of answers)"
        )
    used = ["id", "output", "mixture", "finish_reason", *{answer, by, "kind", "choices"}.intersection(columns)]
    rows = dataset.to_table(columns=used).to_pylist()
    known = [(row, row if reference is None else row | dict(reference.rows.get(row["id"], {}))) for row in rows]
    if reference is not None:
        known = [pair for pair in known if pair[0]["id"] in reference.rows]
    answers = [_answer(url, row, right, answer, by) for row, right in known if right[answer] is not None]
    if not answers:
        where = f"in {masked(reference.url)}" if reference else f"in its column {answer!r}"
        raise UserError(f"evaluate: none of the {len(rows)} records of {masked(url)} has an answer {where}")
    return JudgedRun(answers, len(rows) - len(answers))


def _answer(url: str, row: dict[str, Any], right: Mapping[str, Any], answer: str, by: str) -> Answer:
    is_mcq = right["kind"] == "mcq" if "kind" in right else bool(right.get("choices"))
    question = Question(
        id=row["id"],
        group=str(right.get(by, "all")),
        kind="mcq" if is_mcq else "qa",
        answers=(cleaned(str(right[answer])),),
        choices=tuple(right.get("choices") or ()),
    )
    return Answer(masked(url), question, cleaned(row["output"]), row["mixture"], row["finish_reason"])
