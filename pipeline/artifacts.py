"""Write what is made of a run's committed rows: report, dataset card, MLflow run, and copies in other formats."""

import sys
from collections.abc import Callable

from conf.schema import GenerateConfig

from .errors import UserError
from .job.result import JobResult
from .report import log_run, write_report
from .storage.output.dataset_card import write_card
from .storage.output.export import export_errors, export_lines
from .storage.output.run import BATCH_ERRORS, BATCH_OUTPUT, RUN, RunFolder
from .storage.store.redact import masked


def write_artifacts(output: str, config: GenerateConfig, result: JobResult, log: Callable[[str], None]) -> None:
    """Write everything that follows from a run. A tracking server that fails is logged and does not fail the run."""
    write_report(output)
    if config.tracking.mlflow and result.seconds:  # 0 seconds: the run was finished, and logged, before
        try:
            log(f"tracked as MLflow run {log_run(output, config.tracking.mlflow, config.tracking.experiment)}")
        except UserError as error:
            print(masked(str(error)), file=sys.stderr)
    if not result.incomplete:
        write_copies(output, config)


def write_copies(output: str, config: GenerateConfig) -> None:
    """Write the dataset card of a finished run, and for ``input=openai_batch`` its output and error files."""
    folder = RunFolder(output)
    write_card(folder, folder.read_json(RUN) or {})
    if config.input.layout == "openai_batch":
        export_lines(output, f"{output.rstrip('/')}/{BATCH_OUTPUT}", "openai_batch", replace=True)
        export_errors(output, f"{output.rstrip('/')}/{BATCH_ERRORS}", replace=True)
