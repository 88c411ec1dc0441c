"""Compute the metrics of runs, or compare ways to choose mixtures over a whole suite."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from conf import load_settings
from conf.compose import PROJECT_DIR
from conf.schema_evaluate import EvaluateConfig
from jobs._cli import OK, Job, config_words, run_job, task_option
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import BootstrapSettings
from pipeline.evaluation.configurations import (
    Configuration,
    check_adapters,
    configurations,
    part_configurations,
    sentence_configuration,
)
from pipeline.evaluation.leave_one_out import few_shot, leave_one_out, oracle, read_examples
from pipeline.evaluation.model_stack import ModelStack, load_model_stack
from pipeline.evaluation.results import Evaluation, check_free, write_evaluation, write_results
from pipeline.evaluation.runs import (
    GroupAccuracies,
    accuracy_by_group,
    accuracy_table,
    mean_accuracy,
    read_predictions,
    read_reference,
)
from pipeline.evaluation.suite import SUITES, Suite, load_suite
from pipeline.evaluation.suite_runner import SuiteRunner
from pipeline.models import resolve_model
from pipeline.routing import PartSettings, RoutingPolicy, SentenceSettings
from pipeline.routing.router import unnamed_line
from pipeline.settings import ModelRef
from pipeline.storage.output.run import RUN, RunFolder
from pipeline.storage.store.redact import masked

_DATA = PROJECT_DIR / "demo" / "data"


@dataclass(frozen=True)
class Options:
    """The command line of `main`."""

    run: str | None
    suite: str | None
    against: str | None
    reference: str | None
    answer: str
    by: str
    tasks: tuple[str, ...]
    limit: int | None
    leave_one_out: bool
    examples: str | None
    work: str | None
    output: Path | None
    json: Path | None
    overrides: tuple[str, ...]


@click.command("evaluate", cls=Job)
@click.option("--run", metavar="URL", help="Output of loraloom generate.")
@click.option("--against", metavar="URL", help="With --run: another run over the same records.")
@click.option(
    "--reference", metavar="URL", help="With --run: table of right answers by id; default: a column of the run."
)
@click.option("--answer", default="answer", show_default=True, metavar="COLUMN", help="Column of the right answer.")
@click.option("--by", default="task", show_default=True, metavar="COLUMN", help="Column to group by.")
@click.option("--suite", help=f"{', '.join(SUITES)}, or the URL of a file with their columns.")
@task_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --suite: at most N records of each task.")
@click.option("--leave-one-out", is_flag=True, help="With --suite: leave out each task's own adapter.")
@click.option(
    "--examples",
    metavar="URL",
    help="With --leave-one-out: table of examples (task, prompt, answer) for the few-shot control;"
    " default: the training prompts of the demo's suite.",
)
@click.option(
    "--work", metavar="URL", help="With --suite: folder that keeps the answers; default: work, in the output."
)
@click.option(
    "--output", type=Path, metavar="DIR", help="Folder of the results; default for a suite: out/evaluate/NAME."
)
@click.option("--json", type=Path, metavar="FILE", help="Write the figures to this file too.")
@config_words
def main(**values: Any) -> int:
    """Compute the metrics of runs, or compare ways to choose mixtures over a whole suite.

    \b
    loraloom evaluate --run URL [--against URL] [--reference URL] [--answer COLUMN] [--by COLUMN]
    loraloom evaluate --suite NAME [--task TASK ...] [--limit N] [group=option ...] [key=value ...]
    loraloom evaluate --suite NAME --leave-one-out [--examples URL] [--task TASK ...] [--limit N] [...]

    The right answers of a run are in a column that it passed through, or by id in the table --reference (a file of any
    input format). --against shows a second run over the same records beside it.

    A suite is answered in this process, in every way of pipeline.evaluation.configurations, or with --leave-one-out of
    pipeline.evaluation.leave_one_out. An interrupted command continues where it stopped. --output gets results.json,
    metrics.parquet, records.parquet and tables.md.
    """
    options = Options(**values)
    config = load_settings("evaluate", options.overrides, EvaluateConfig)
    _check(options)
    check_free(options.output, options.json)
    return _evaluate_suite(options, options.suite, config) if options.suite else _evaluate_runs(options, config)


def _check(options: Options) -> None:
    if (options.run is None) == (options.suite is None):
        raise UserError("evaluate: give --run or --suite")
    other: dict[str, Any] = {"--task": options.tasks, "--limit": options.limit, "--work": options.work}
    other |= {"--leave-one-out": options.leave_one_out, "--examples": options.examples}
    if options.examples and not options.leave_one_out:
        raise UserError("evaluate: --examples goes with --leave-one-out only")
    if options.suite:
        other = {"--against": options.against, "--reference": options.reference}
    wrong = [name for name, value in other.items() if value]
    if wrong:
        raise UserError(f"evaluate: {', '.join(wrong)} does not go with {'--run' if options.run else '--suite'}")


def _evaluate_suite(options: Options, suite_name: str, config: EvaluateConfig) -> int:
    suite = load_suite(suite_name, _DATA, options.tasks or None, options.limit)
    output = options.output or Path("out/evaluate") / (suite.name + ("-leave-one-out" if options.leave_one_out else ""))
    if config.threads:
        torch.set_num_threads(config.threads)
    m, engine = config.model, EngineSettings(config.engine.batch_size, config.engine.prefill_tokens)
    model = ModelRef(resolve_model(m.path), m.dtype, m.prompts, m.trust_remote_code, m.quantization)
    bank = config.bank
    stack = load_model_stack(model, bank.path, config.router.path, bank.adapters, config.device, engine)
    adapters = stack.engine.lora.bank.names
    if unnamed := stack.router.unnamed(adapters):
        _log(unnamed_line(unnamed))
    runner = SuiteRunner(stack, suite, config.max_new_tokens, config.engine.score_tokens, _log)
    policy = RoutingPolicy(**config.routing.model_dump()).for_router(stack.router.fallback)
    if options.leave_one_out:
        compared = _left_out(options, suite, stack, policy, config.max_new_tokens)
    else:
        check_adapters(suite.questions, adapters, _portable(config.bank.path))
        compared = configurations(suite.composite, adapters, stack.router, policy)
        if suite.composite:
            compared.append(sentence_configuration(stack.prompts, stack.router, policy, SentenceSettings()))
            compared += part_configurations(stack.prompts, stack.router, policy, PartSettings())
    evaluation = Evaluation.of(runner.predictions(compared, options.work or str(output / "work")), _bootstrap(config))
    about = {
        "suite": suite.name,
        "questions": len(suite.questions),
        "fingerprints": runner.identity | {"router": stack.router.fingerprint},
        "config": _portable(config.model_dump(mode="json")),
    }
    title = f"{suite.name}: {len(suite.questions)} questions, {len(adapters)} adapters"
    _write(options, output, title, evaluation, about)
    return OK


def _left_out(
    options: Options, suite: Suite, stack: ModelStack, policy: RoutingPolicy, max_new_tokens: int
) -> list[Configuration]:
    compared = leave_one_out(stack.router, policy) + oracle(suite.questions, stack.engine.lora.bank.names)
    examples_url = options.examples or (str(_DATA / "suite-train.parquet") if suite.name == "suite-test" else None)
    examples = read_examples(examples_url, suite.questions) if examples_url else {}
    if all(examples.get(question.group) for question in suite.questions):
        compared.append(few_shot(stack.prompts, examples, stack.engine.context - max_new_tokens))
    else:
        _log("few-shot   left out: no examples of every task (--examples)")
    return compared


def _evaluate_runs(options: Options, config: EvaluateConfig) -> int:
    reference = read_reference(options.reference, options.answer) if options.reference else None
    urls = [url for url in (options.run, options.against) if url]
    runs = {masked(url): read_predictions(url, options.answer, options.by, reference) for url in urls}
    for name, run in runs.items():
        if options.reference and run.unreferenced:
            left_out = f"{run.unreferenced} of {len(run.predictions) + run.unreferenced} records"
            _log(f"{name}: {left_out} have no answer in {masked(options.reference)} and are left out")
    predictions = [prediction for run in runs.values() for prediction in run.predictions]
    evaluation = Evaluation.of(predictions, _bootstrap(config))
    accuracies = {name: accuracy_by_group(run.predictions) for name, run in runs.items()}
    about = {"runs": {masked(url): _of_run(url, accuracies[masked(url)]) for url in urls}}
    _write(options, options.output, " and ".join(runs), evaluation, about)
    print(accuracy_table(accuracies))
    return OK


def _write(options: Options, output: Path | None, title: str, evaluation: Evaluation, about: dict[str, Any]) -> None:
    print("means over tasks, 0 to 100, with 95 % intervals")
    print(evaluation.means + "\n")
    if output:
        write_evaluation(output, title, evaluation, about)
        print(f"output     {output} (tables.md, results.json, metrics.parquet, records.parquet)")
    if options.json:
        write_results(options.json, about | evaluation.to_json())


def _bootstrap(config: EvaluateConfig) -> BootstrapSettings:
    return BootstrapSettings(**config.bootstrap.model_dump())


def _of_run(url: str, accuracies: GroupAccuracies) -> dict[str, Any]:
    run = _portable(RunFolder(url).read_json(RUN) or {})
    groups = {g: {"records": a.records, "right": a.right, "accuracy": a.accuracy} for g, a in accuracies.items()}
    about = {key: run.get(key) for key in ("config", "versions", "fingerprints", "counts", "timings")}
    return {"mean": mean_accuracy(accuracies), "groups": groups} | about


def _portable(values: Any) -> Any:
    """Remove the project's own folder from JSON values, so that result files name no folder of one machine."""
    return json.loads(json.dumps(values).replace(f"{PROJECT_DIR}/", ""))


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_job(main)
