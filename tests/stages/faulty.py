"""Generating actors that do not do what they should; Ray imports them in its workers."""

import os
from collections.abc import Sequence
from typing import Any

from pipeline.engine import Failure, Request
from pipeline.stages.generate import GenerateRecords


class RefusesSome(GenerateRecords):
    """Has no answer for records whose number is a multiple of 3, as if memory had ended."""

    def _answers(self, requests: Sequence[Request]) -> list[Any]:
        answers = super()._answers(requests)
        refused = Failure("OutOfMemoryError", "CUDA out of memory")
        return [refused if int(r.id[1:]) % 3 == 0 else a for r, a in zip(requests, answers, strict=True)]


class RaisesAtStart(GenerateRecords):
    def _start(self, *args: Any) -> None:
        raise RuntimeError("the driver of the GPU is too old")


class DiesAtStart(GenerateRecords):
    def _start(self, *args: Any) -> None:
        os._exit(1)
