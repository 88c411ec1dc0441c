"""A router and an engine that note when they work; Ray imports them in its workers."""

import time
from pathlib import Path

import pyarrow as pa

from pipeline.records import COMPLETED
from pipeline.settings import JobSettings
from pipeline.stages.route import RouteRecords
from pipeline.stages.tables import with_columns
from pipeline.telemetry.incidents import Incidents
from tests.job import ANSWER


def routed_tables(settings: JobSettings) -> Path:
    """The file with a character for each table that was routed."""
    return Path(f"{settings.output}.routed")


def routed_before(settings: JobSettings) -> Path:
    """The file with the number of tables that were routed before the first answer."""
    return Path(f"{settings.output}.before")


class RoutesSlowly(RouteRecords):
    """Takes a while for a table, so that routing all of them takes longer than anything else."""

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(0.1)
        with routed_tables(self.settings).open("a") as notes:
            notes.write("x")
        return super().__call__(table)


class AnswersAtOnce:
    """Notes what was routed before its first answer."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
        self.settings = settings

    def __call__(self, table: pa.Table) -> pa.Table:
        if not routed_before(self.settings).exists():
            routed_before(self.settings).write_text(str(routed_tables(self.settings).stat().st_size))
        return with_columns(table, COMPLETED, {name: [value] * table.num_rows for name, value in ANSWER.items()})
