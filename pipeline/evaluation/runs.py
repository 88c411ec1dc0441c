"""Read the outputs of runs of `loraloom generate` with their references, and compare exact match by group."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.storage import read_run
from pipeline.storage.input.columns import id_text
from pipeline.storage.input.labelled import read_table
from pipeline.storage.store.redact import masked
from pipeline.storage.types.values import python_rows

from .metrics import Prediction
from .suite import Question
from .text_metrics import cleaned, exact_match


@dataclass(frozen=True)
class Reference:
    """Right answers by record id, from the table at ``url``; ``rows`` hold its other columns too."""

    url: str
    rows: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunPredictions:
    """The outputs of a run. ``unreferenced``: number of records without a right answer, which are left out."""

    predictions: list[Prediction]
    unreferenced: int


@dataclass(frozen=True)
class GroupAccuracy:
    """Records of a group that have a right answer, and the number of outputs that match it."""

    records: int
    right: int

    @property
    def accuracy(self) -> float:
        """Return the share of matching outputs."""
        return self.right / self.records


GroupAccuracies = dict[str, GroupAccuracy]


def read_reference(url: str, answer: str) -> Reference:
    """Read the table of right answers; raise `UserError` for a missing column or a repeated id."""
    rows = read_table(url, ["id", answer])
    repeated = [name for name, count in Counter(id_text(row["id"]) for row in rows).items() if count > 1]
    if repeated:
        raise UserError(f"evaluate: {masked(url)} gives {len(repeated)} id(s) more than once, {repeated[0]!r} first")
    return Reference(url, {id_text(row["id"]): row for row in rows})


def read_predictions(url: str, answer: str, by: str, reference: Reference | None) -> RunPredictions:
    """Read the run's records that have a right answer: in the column ``answer`` of the reference or of the run itself.

    ``by``: column to group by. A record is multiple choice if its `kind` is ``mcq`` or, without such a column, if it
    has `choices`. Raises `UserError` if no record has an answer.
    """
    dataset = read_run(url)
    columns = dataset.schema.names
    if reference is None and answer not in columns:
        raise UserError(
            f"evaluate: {masked(url)} has no column {answer!r}; it has {', '.join(columns)}"
            " (--answer, or --reference for a table of answers)"
        )
    used = ["id", "output", "mixture", "finish_reason", *{answer, by, "kind", "choices"}.intersection(columns)]
    rows = python_rows(dataset.to_table(columns=used))
    known = [(row, row if reference is None else row | dict(reference.rows.get(row["id"], {}))) for row in rows]
    if reference is not None:
        known = [pair for pair in known if pair[0]["id"] in reference.rows]
    predictions = [_prediction(url, row, right, answer, by) for row, right in known if right[answer] is not None]
    if not predictions:
        where = f"in {masked(reference.url)}" if reference else f"in its column {answer!r}"
        raise UserError(f"evaluate: none of the {len(rows)} records of {masked(url)} has an answer {where}")
    return RunPredictions(predictions, len(rows) - len(predictions))


def _prediction(url: str, row: dict[str, Any], right: Mapping[str, Any], answer: str, by: str) -> Prediction:
    is_mcq = right["kind"] == "mcq" if "kind" in right else bool(right.get("choices"))
    question = Question(
        id=row["id"],
        group=str(right.get(by, "all")),
        kind="mcq" if is_mcq else "qa",
        answers=(cleaned(str(right[answer])),),
        choices=tuple(right.get("choices") or ()),
    )
    return Prediction(masked(url), question, cleaned(row["output"]), row["mixture"], row["finish_reason"])


def accuracy_by_group(predictions: Iterable[Prediction]) -> GroupAccuracies:
    """Compute exact match by group, over questions of all kinds."""
    matches: dict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        matches[prediction.question.group].append(exact_match(prediction.output, prediction.question.reference))
    return {group: GroupAccuracy(len(found), int(sum(found))) for group, found in sorted(matches.items())}


def mean_accuracy(accuracies: GroupAccuracies) -> float:
    """Average over the groups, each with the same weight."""
    return sum(group.accuracy for group in accuracies.values()) / max(1, len(accuracies))


def accuracy_table(runs: Mapping[str, GroupAccuracies]) -> str:
    """Format a line for each group and one for their mean, with a column for each run."""
    groups = sorted({group for accuracies in runs.values() for group in accuracies})
    width = max([len(group) for group in groups] + [11])
    lines = [f"{'exact match':{width}}  records  " + "  ".join(f"{url:>14}" for url in runs)]
    for group in groups:
        found = [accuracies.get(group) for accuracies in runs.values()]
        cells = "  ".join(f"{a.accuracy:>14.1%}" if a else f"{'-':>14}" for a in found)
        lines.append(f"{group:{width}}  {max(a.records for a in found if a):7d}  {cells}")
    means = "  ".join(f"{mean_accuracy(accuracies):>14.1%}" for accuracies in runs.values())
    return "\n".join([*lines, f"{'mean':{width}}  {'':7}  {means}"])
