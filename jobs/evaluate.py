"""Metrics of runs, or of ways to choose mixtures over a whole suite.

    python -m jobs.evaluate --run URL [--against URL] [--reference URL] [--answer answer] [--by task]
    python -m jobs.evaluate --suite NAME [--tasks a b ...] [--limit N] [group=option ...] [key=value ...]

The right answers of a run stand in a column that it passed through, or by id in the table `--reference` (Parquet,
JSONL or CSV). With `--against`, a second run over the same records is shown beside it.

A suite (`suite-test`, `composite2-test`, `composite3-test`, or the URL of a file with their columns) is answered in
this process under every configuration of `pipeline.evaluation.configurations`; an interrupted command goes on where
it stopped. `--output` gets `results.json`, `metrics.parquet`, `records.parquet` and `tables.md`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from conf import load_settings
from conf.compose import PROJECT_DIR
from conf.schema_evaluate import EvaluateConfig
from jobs._cli import OK, run_job, split_tasks
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.evaluation import (
    SUITES,
    BootstrapSettings,
    Comparison,
    ComparisonSettings,
    Evaluation,
    SetupSettings,
    check_adapters,
    configurations,
    load_setup,
    load_suite,
    read_answers,
    read_reference,
    sentence_configuration,
    write_evaluation,
)
from pipeline.evaluation.accuracy import Accuracies, accuracy_by_group, accuracy_lines, mean_accuracy
from pipeline.evaluation.results import write_results
from pipeline.models import resolve_model
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.storage.output.run import RUN, RunFolder
from pipeline.storage.store.redact import masked


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    args = split_tasks(_parser().parse_intermixed_args(argv))
    config = load_settings("evaluate", args.overrides, EvaluateConfig)
    _check(args)
    return _evaluate_suite(args, config) if args.suite else _evaluate_runs(args, config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs.evaluate", description="Metrics of runs, or of a whole suite.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="output of jobs.generate")
    what.add_argument("--suite", help=f"{', '.join(SUITES)}, or the URL of a file with their columns")
    parser.add_argument("--against", help="another run over the same records")
    parser.add_argument("--reference", help="table of right answers by id; default: a column of the run")
    parser.add_argument("--answer", default="answer", help="column of the right answer")
    parser.add_argument("--by", default="task", help="column to group by")
    parser.add_argument("--tasks", nargs="*", help="tasks of the suite (default: all)")
    parser.add_argument("--limit", type=int, help="at most so many records of each task of the suite")
    parser.add_argument("--work", help="folder that keeps a suite's answers (default: work, in the output)")
    parser.add_argument("--output", type=Path, help="folder of the results (default for a suite: out/evaluate/NAME)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")
    return parser


def _check(args: argparse.Namespace) -> None:
    other = ["tasks", "limit", "work"] if args.run else ["against", "reference"]
    wrong = [f"--{name}" for name in other if getattr(args, name) is not None]
    if wrong:
        raise UserError(f"evaluate: {', '.join(wrong)} does not go with {'--run' if args.run else '--suite'}")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"evaluate: --limit {args.limit}: give 1 or more")


def _evaluate_suite(args: argparse.Namespace, config: EvaluateConfig) -> int:
    suite = load_suite(args.suite, PROJECT_DIR / "demo" / "data", args.tasks or None, args.limit)
    output = args.output or Path("out/evaluate") / suite.name
    if config.threads:
        torch.set_num_threads(config.threads)
    setup = load_setup(_setup_settings(config))
    adapters = setup.engine.lora.bank.names
    check_adapters(suite.questions, adapters, _portable(config.bank.path))
    settings = ComparisonSettings(args.work or str(output / "work"), config.max_new_tokens, config.engine.score_tokens)
    comparison = Comparison(setup, suite, settings, _say)
    policy = RoutingPolicy(**config.routing.model_dump())
    compared = configurations(suite.composite, adapters, setup.router, policy)
    if suite.composite:
        compared.append(sentence_configuration(setup.prompts, setup.router, policy, SentenceSettings()))
    evaluation = Evaluation.of(comparison.answers(compared), _bootstrap(config))
    about = {
        "suite": suite.name,
        "questions": len(suite.questions),
        "fingerprints": comparison.identity | {"router": setup.router.fingerprint},
        "config": _portable(config.model_dump(mode="json")),
    }
    title = f"{suite.name}: {len(suite.questions)} questions, {len(adapters)} adapters"
    _write(args, output, title, evaluation, about)
    return OK


def _evaluate_runs(args: argparse.Namespace, config: EvaluateConfig) -> int:
    reference = read_reference(args.reference, args.answer) if args.reference else None
    urls = [args.run, args.against] if args.against else [args.run]
    runs = {masked(url): read_answers(url, args.answer, args.by, reference) for url in urls}
    for name, run in runs.items():
        if reference and run.unreferenced:
            left_out = f"{run.unreferenced} of {len(run.answers) + run.unreferenced} records"
            _say(f"{name}: {left_out} have no answer in {masked(args.reference)} and are left out")
    evaluation = Evaluation.of([answer for run in runs.values() for answer in run.answers], _bootstrap(config))
    accuracies = {name: accuracy_by_group(run.answers) for name, run in runs.items()}
    about = {"runs": {masked(url): _of_run(url, accuracies[masked(url)]) for url in urls}}
    _write(args, args.output, " and ".join(runs), evaluation, about)
    print(accuracy_lines(accuracies))
    return OK


def _write(
    args: argparse.Namespace, output: Path | None, title: str, evaluation: Evaluation, about: dict[str, Any]
) -> None:
    print("means over tasks, 0 to 100, with 95 % intervals")
    print(evaluation.means + "\n")
    if output:
        write_evaluation(output, title, evaluation, about)
        print(f"output     {output} (tables.md, results.json, metrics.parquet, records.parquet)")
    if args.json:
        write_results(args.json, about | evaluation.figures())


def _setup_settings(config: EvaluateConfig) -> SetupSettings:
    model, engine = config.model, config.engine
    return SetupSettings(
        model=resolve_model(model.path),
        bank=config.bank.path,
        router=config.router.path,
        dtype=model.dtype,
        prompt_format=model.prompt_format,
        trust_remote_code=model.trust_remote_code,
        quantization=model.quantization,
        adapters=config.bank.adapters,
        device=config.device,
        engine=EngineSettings(engine.batch_size, engine.prefill_tokens),
    )


def _bootstrap(config: EvaluateConfig) -> BootstrapSettings:
    return BootstrapSettings(**config.bootstrap.model_dump())


def _of_run(url: str, accuracies: Accuracies) -> dict[str, Any]:
    run = _portable(RunFolder(url).read_json(RUN) or {})
    groups = {g: {"records": a.records, "right": a.right, "accuracy": a.accuracy} for g, a in accuracies.items()}
    about = {key: run.get(key) for key in ("config", "versions", "fingerprints", "counts", "timings")}
    return {"mean": mean_accuracy(accuracies), "groups": groups} | about


def _portable(values: Any) -> Any:
    """JSON values without the project's own folder: result files name no folder of one machine."""
    return json.loads(json.dumps(values).replace(f"{PROJECT_DIR}/", ""))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_job(main)
