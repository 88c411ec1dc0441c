"""A generating actor that answers at once, to measure the cost of the pipeline alone."""

from typing import Any

import pyarrow as pa

from pipeline.records import COMPLETED
from pipeline.settings import JobSettings
from pipeline.stages.tables import with_columns
from pipeline.telemetry.incidents import Incidents


class AnswersAtOnce:
    """Replaces `GenerateRecords`, without a model: every answer is empty."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
        self.incidents = incidents

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`."""
        count = table.num_rows
        values: dict[str, Any] = {"output": "", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 0}
        values["answer_logprob"] = 0.0
        with self.incidents.recording("generate", records=count):
            return with_columns(table, COMPLETED, {name: [value] * count for name, value in values.items()})
