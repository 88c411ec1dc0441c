"""Actors that do not do what they should; Ray imports them in its workers."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.engine import Failure, Request
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords


class RefusesSome(GenerateRecords):
    """Has no answer for records whose number is a multiple of 3, as if memory had ended."""

    def _answer(self, requests: Sequence[Request]) -> list[Any]:
        answers = super()._answer(requests)
        refused = Failure("OutOfMemoryError", "CUDA out of memory")
        return [refused if int(r.id[1:]) % 3 == 0 else a for r, a in zip(requests, answers, strict=True)]


class RaisesAtStart(GenerateRecords):
    def _start(self, *args: Any) -> None:
        raise RuntimeError("the driver of the GPU is too old")


class FailsAtFirst(GenerateRecords):
    """The first actor cannot start; the one in its place can."""

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        failed = Path(f"{settings.output}.failed")
        if not failed.exists():
            failed.touch()
            raise RuntimeError("the GPU is busy")
        super()._start(settings, device, threads)


class DiesAtStart(GenerateRecords):
    def _start(self, *args: Any) -> None:
        os._exit(1)


class HangsOnce(GenerateRecords):
    """Its first pass never ends; the process that comes after it works."""

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        super()._start(settings, device, threads)
        hung = Path(f"{settings.output}.hung")

        def hang(*args: Any, **kwargs: Any) -> None:
            hung.touch()
            time.sleep(3600)

        if not hung.exists():
            self.backend.engine.model.forward = hang  # type: ignore[attr-defined]


class EngineDiesOfOne(GenerateRecords):
    """An engine whose process dies of the record `r7`."""

    def _answer(self, requests: Sequence[Request]) -> list[Any]:
        if "r7" in [request.id for request in requests]:
            os._exit(1)
        return super()._answer(requests)


class DiesOfOne(RouteRecords):
    """A router whose process dies of the record `r7`."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if "r7" in table["id"].to_pylist():
            os._exit(1)
        return super().__call__(table)
