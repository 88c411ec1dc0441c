"""Recording what a function does to memory, to do it again without the function."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Recording:
    """``replay`` runs the recorded kernels again, on the same memory; their result is then in ``output``."""

    replay: Callable[[], None]
    output: torch.Tensor


Recorder = Callable[[Callable[[], torch.Tensor]], Recording]
"""Records a function that reads and writes memory of fixed addresses, and never waits for the device."""


class CudaRecorder:
    """CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), all in one memory pool.

    They share it as only one runs at a time, and its output is used before the next runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Run once on a side stream, as libraries set themselves up at their first call, and record the second run."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = run()
        return Recording(graph.replay, output)
