"""Answer a suite under every configuration, each distinct record and mixture once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.engine import Failure, Request, Sampling
from pipeline.engine.scoring.score import Choices, score_choices

from .configurations import Asked, Configuration
from .metrics import Answer, Likelihoods
from .progress import Progress
from .setup import Setup
from .store import ANSWERS, LIKELIHOODS, Key, Store, work_folder
from .suite import Suite
from .text_metrics import cleaned

# For the time that is left: on a CPU a new token costs about as much as ten of the prompt.
_NEW_TOKEN_WORK = 10


@dataclass(frozen=True)
class ComparisonSettings:
    """``work``: URL of the folder for results; ``score_tokens``: see `score_choices`."""

    work: str
    max_new_tokens: int = 64
    score_tokens: int = 8192


@dataclass(frozen=True)
class _Wanted:
    """One answer to get: its question, its request and the configuration that asks for it first."""

    asked: Asked
    request: Request
    configuration: Configuration


class Comparison:
    """The answers of all configurations to a suite; what an earlier start has worked out is not done again."""

    def __init__(self, setup: Setup, suite: Suite, settings: ComparisonSettings, say: Callable[[str], None]) -> None:
        self.setup, self.suite, self.settings, self.say = setup, suite, settings, say
        self.identity = setup.identity | {"suite": suite.fingerprint, "max_new_tokens": str(settings.max_new_tokens)}

    def answers(self, compared: Sequence[Configuration]) -> list[Answer]:
        """One answer for each configuration and question."""
        folder = work_folder(self.settings.work, self.identity)
        tokens = self.setup.prompts.encode([question.prompt for question in self.suite.questions])
        asked = [Asked(question, ids) for question, ids in zip(self.suite.questions, tokens, strict=True)]
        requests = {one.name: one.requests(asked) for one in compared}
        wanted: dict[Key, _Wanted] = {}
        for one in compared:
            for question, request in zip(asked, requests[one.name], strict=True):
                wanted.setdefault((request.id, one.key(request)), _Wanted(question, request, one))
        with Store(folder, "answers", ANSWERS) as outputs:
            self._generate(wanted, outputs)
        with Store(folder, "likelihoods", LIKELIHOODS) as likelihoods:
            self._score(wanted, likelihoods)
        self._say_failures(wanted, outputs, likelihoods)
        return [
            _answer(one, question, request, outputs, likelihoods)
            for one in compared
            for question, request in zip(asked, requests[one.name], strict=True)
        ]

    def _generate(self, wanted: dict[Key, _Wanted], outputs: Store) -> None:
        missing = {key: want for key, want in wanted.items() if key not in outputs.rows}
        self.say(f"answers: {len(wanted)} distinct records and mixtures, {len(wanted) - len(missing)} there already")
        progress = Progress(
            "answers", len(missing), sum(self._work(want.request) for want in missing.values()), self.say
        )
        sampling = Sampling(max_new_tokens=self.settings.max_new_tokens)
        for arguments, keys in _by_arguments(missing):
            # Numbered, since configurations ask for the same record; greedy answers do not depend on the id.
            requests = [replace(missing[key].request, id=str(number)) for number, key in enumerate(keys)]
            for request, got in self.setup.engine.generate(requests, sampling, **arguments):
                outputs.add(keys[int(request.id)], _error(got) if isinstance(got, Failure) else vars(got))
                progress.step(self._work(request))

    def _work(self, request: Request) -> float:
        return len(request.tokens) + _NEW_TOKEN_WORK * self.settings.max_new_tokens

    def _score(self, wanted: dict[Key, _Wanted], likelihoods: Store) -> None:
        scored = {key: want for key, want in wanted.items() if want.asked.question.kind == "mcq"}
        missing = {key: want for key, want in scored.items() if key not in likelihoods.rows}
        if scored:
            self.say(f"choices: {len(scored)} prompts and mixtures, {len(scored) - len(missing)} there already")
        keys = list(missing)
        items = [self._choices(missing[key], number) for number, key in enumerate(keys)]
        progress = Progress("choices", len(items), sum(map(_score_work, items)), self.say)
        for item, got in score_choices(self.setup.engine, items, self.settings.score_tokens):
            lengths = [len(choice) for choice in item.choices]
            values = _error(got) if isinstance(got, Failure) else {"sums": got, "tokens": lengths}
            likelihoods.add(keys[int(item.request.id)], values)
            progress.step(_score_work(item))

    def _choices(self, want: _Wanted, number: int) -> Choices:
        encoded = self.setup.prompts.encode_answer(want.asked.question.choices)
        return Choices(replace(want.request, id=str(number)), encoded)

    def _say_failures(self, wanted: Iterable[Key], *stores: Store) -> None:
        errors = [row["error"] for s in stores for key, row in s.rows.items() if key in wanted and row.get("error")]
        if errors:
            self.say(f"{len(errors)} answers failed and count as empty or wrong; the first: {errors[0]}")


def _by_arguments(wanted: dict[Key, _Wanted]) -> list[tuple[dict[str, Any], list[Key]]]:
    """Keys that one call of the engine can answer: those with equal further arguments."""
    calls: list[tuple[dict[str, Any], list[Key]]] = []
    for key, want in wanted.items():
        arguments = dict(want.configuration.generate)
        same = next((keys for known, keys in calls if known == arguments), None)
        if same is None:
            calls.append((arguments, [key]))
        else:
            same.append(key)
    return calls


def _error(failure: Failure) -> dict[str, Any]:
    return {"error": f"{failure.error_type}: {failure.message}"}


def _score_work(item: Choices) -> float:
    return len(item.request.tokens) + sum(map(len, item.choices))


def _answer(one: Configuration, asked: Asked, request: Request, outputs: Store, likelihoods: Store) -> Answer:
    key = (request.id, one.key(request))
    row, scored = outputs.rows[key], likelihoods.rows.get(key, {})
    return Answer(
        configuration=one.name,
        question=asked.question,
        output=cleaned(row.get("output") or ""),
        mixture=request.mixture.key,
        finish_reason=row.get("finish_reason") or "failed",
        likelihoods=Likelihoods(tuple(scored["sums"]), tuple(scored["tokens"])) if scored.get("sums") else None,
    )
