"""What is made of the committed rows when a run has ended: report, dataset card, tracking, answers in other forms."""

import sys
from collections.abc import Callable

from conf.schema import GenerateConfig

from .errors import UserError
from .job.result import JobResult
from .report import log_run, write_report
from .storage.output.dataset_card import write_card
from .storage.output.export import export_errors, export_lines
from .storage.output.run import RUN, RunFolder
from .storage.store.redact import masked


def write_derived(output: str, config: GenerateConfig, result: JobResult, say: Callable[[str], None]) -> None:
    """Write it; a tracking server that cannot be reached is told, and costs the run nothing."""
    write_report(output)
    if config.tracking.mlflow and result.seconds:  # a finished run that was started again has been logged
        try:
            say(f"tracked as MLflow run {log_run(output, config.tracking.mlflow, config.tracking.experiment)}")
        except UserError as error:
            print(masked(str(error)), file=sys.stderr)
    if not result.incomplete:
        write_copies(output, config)


def write_copies(output: str, config: GenerateConfig) -> None:
    """Of a finished run: the dataset card, and the answers as the input's layout has them."""
    folder = RunFolder(output)
    write_card(folder, folder.read_json(RUN) or {})
    if config.input.layout == "openai_batch":
        export_lines(output, f"{output.rstrip('/')}/batch_output.jsonl", "openai_batch")
        export_errors(output, f"{output.rstrip('/')}/batch_errors.jsonl")
