"""Answer a suite under every configuration, each distinct record and mixture once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pipeline.engine import Failure, Request, Sampling
from pipeline.engine.scoring.score import Choices, score_choices

from .configurations import Asked, Configuration, TokenizedQuestion
from .metrics import Likelihoods, Prediction
from .model_stack import ModelStack
from .result_cache import ANSWERS, LIKELIHOODS, Key, ResultCache, work_folder
from .suite import Suite
from .text_metrics import cleaned

# Work units for the time left: on a CPU a new token costs about as much as ten of the prompt.
_NEW_TOKEN_WORK = 10
_WORST = ("failed", "length", "stop", "choice")  # finish reasons; of several parts the first of these counts
_MIN_DONE = 20  # items before the time left is estimated: the first ones wait for a whole batch


@dataclass(frozen=True)
class _Item:
    """One answer to compute: its question, its request and the first configuration that needs it."""

    question: TokenizedQuestion
    request: Request
    configuration: Configuration


class SuiteRunner:
    """Computes the answers of all configurations to a suite, except those that an earlier run has stored."""

    def __init__(
        self, stack: ModelStack, suite: Suite, max_new_tokens: int, score_tokens: int, log: Callable[[str], None]
    ) -> None:
        self.stack, self.suite, self.log = stack, suite, log
        self.max_new_tokens, self.score_tokens = max_new_tokens, score_tokens
        self.identity = stack.identity | {"suite": suite.fingerprint, "max_new_tokens": str(max_new_tokens)}

    def predictions(self, configurations: Sequence[Configuration], work: str) -> list[Prediction]:
        """Return one prediction for each configuration and question; ``work``: URL of the folder of stored answers."""
        folder = work_folder(work, self.identity)
        tokens = self.stack.prompts.encode([question.prompt for question in self.suite.questions])
        questions = [TokenizedQuestion(*pair) for pair in zip(self.suite.questions, tokens, strict=True)]
        asked = {one.name: one.asked(questions) for one in configurations}
        items: dict[Key, _Item] = {}
        for one in configurations:
            for question, some in zip(questions, asked[one.name], strict=True):
                for request in some.requests:
                    items.setdefault((request.id, one.key(request)), _Item(question, request, one))
        with ResultCache(folder, "answers", ANSWERS) as outputs:
            self._generate(items, outputs)
        with ResultCache(folder, "likelihoods", LIKELIHOODS) as likelihoods:
            self._score(items, likelihoods)
        results = [row for cache in (outputs, likelihoods) for key, row in cache.rows.items() if key in items]
        errors = [row["error"] for row in results if row.get("error")]
        if errors:
            self.log(f"{len(errors)} answers failed and count as empty or wrong; the first: {errors[0]}")
        return [
            _prediction(one, question, some, outputs, likelihoods)
            for one in configurations
            for question, some in zip(questions, asked[one.name], strict=True)
        ]

    def _generate(self, items: dict[Key, _Item], outputs: ResultCache) -> None:
        missing = {key: item for key, item in items.items() if key not in outputs.rows}
        self.log(f"answers: {len(items)} distinct records and mixtures, {len(items) - len(missing)} already stored")
        work = sum(self._work(item.request) for item in missing.values())
        progress = ProgressLines("answers", len(missing), work, self.log)
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        for arguments, group in groupby(missing, key=lambda key: missing[key].configuration.generate):
            keys = list(group)
            # Numbered, since configurations share record ids; greedy answers do not depend on the id.
            requests = [replace(missing[key].request, id=str(index)) for index, key in enumerate(keys)]
            for request, result in self.stack.engine.generate(requests, sampling, **arguments):
                values = _error(result) if isinstance(result, Failure) else vars(result)
                outputs.add(keys[int(request.id)], values)
                progress.step(self._work(request))

    def _work(self, request: Request) -> float:
        return len(request.tokens) + _NEW_TOKEN_WORK * self.max_new_tokens

    def _score(self, items: dict[Key, _Item], likelihoods: ResultCache) -> None:
        scored = {key: item for key, item in items.items() if item.question.question.kind == "mcq"}
        missing = {key: item for key, item in scored.items() if key not in likelihoods.rows}
        if scored:
            self.log(f"choices: {len(scored)} prompts and mixtures, {len(scored) - len(missing)} already stored")
        keys = list(missing)
        encode = self.stack.prompts.encode_answer
        choices = [
            Choices(replace(item.request, id=str(index)), encode(item.question.question.choices))
            for index, item in enumerate(missing.values())
        ]
        progress = ProgressLines("choices", len(choices), sum(map(_score_work, choices)), self.log)
        for item, result in score_choices(self.stack.engine, choices, self.score_tokens):
            lengths = [len(choice) for choice in item.choices]
            values = _error(result) if isinstance(result, Failure) else {"sums": result, "tokens": lengths}
            likelihoods.add(keys[int(item.request.id)], values)
            progress.step(_score_work(item))


class ProgressLines:
    """Logs the progress of ``total`` items, whose work sums to ``work`` (any unit), at most every 10 s."""

    def __init__(self, label: str, total: int, work: float, log: Callable[[str], None]) -> None:
        self.label, self.total, self.work, self.log = label, total, work, log
        self.done, self.work_done = 0, 0.0
        self.started = self._last_line = time.monotonic()

    def step(self, work: float) -> None:
        """Count one finished item."""
        self.done += 1
        self.work_done += work
        now = time.monotonic()
        if now - self._last_line >= 10 or self.done == self.total:
            self._last_line = now
            self.log(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        line = f"{self.label} {self.done}/{self.total}  {self.done / max(seconds, 1e-9):.1f}/s"
        if self.done == self.total:
            return f"{line}  {_duration(seconds)} in all"
        if self.done < _MIN_DONE:
            return line
        return f"{line}  {_duration(seconds * (self.work - self.work_done) / self.work_done)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _error(failure: Failure) -> dict[str, Any]:
    return {"error": f"{failure.error_type}: {failure.message}"}


def _score_work(item: Choices) -> float:
    return len(item.request.tokens) + sum(map(len, item.choices))


def _prediction(
    one: Configuration, question: TokenizedQuestion, asked: Asked, outputs: ResultCache, likelihoods: ResultCache
) -> Prediction:
    keys = [(request.id, one.key(request)) for request in asked.requests]
    rows, scored = [outputs.rows[key] for key in keys], likelihoods.rows.get(keys[0], {})
    reasons = [row.get("finish_reason") or "failed" for row in rows]
    return Prediction(
        configuration=one.name,
        question=question.question,
        output=asked.join([cleaned(row.get("output") or "") for row in rows]),
        mixture=asked.mixture.key,
        finish_reason=min(reasons, key=_WORST.index),
        likelihoods=Likelihoods(tuple(scored["sums"]), tuple(scored["tokens"])) if scored.get("sums") else None,
    )
