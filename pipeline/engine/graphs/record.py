"""Record the kernels of a function, and replay them without it."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Recording:
    """``replay`` runs the recorded kernels again on the same memory; their result is then in ``output``."""

    replay: Callable[[], None]
    output: torch.Tensor


Recorder = Callable[[Callable[[], torch.Tensor]], Recording]
"""Records a function that reads and writes memory at fixed addresses and never waits for the device."""


class CudaRecorder:
    """CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), all in one memory pool.

    They can share it: only one runs at a time, and its output is used before the next runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # A pool without graphs accepts no new ones ("use_count > 0" fails in torch's allocator): this graph keeps it
        # alive, as torch's own graph trees do.
        self._keeper = self._record(lambda: torch.zeros(1, device=device))

    def __call__(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Run once on a side stream, since libraries initialise at their first call, and record the second run."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return self._record(run)

    def _record(self, run: Callable[[], torch.Tensor]) -> Recording:
        # Not `torch.cuda.graph`: it collects garbage and frees all cached memory each time, which takes longer than
        # many steps. So the garbage collector must not run while recording: a cycle could hold memory of the device.
        # Kernels of other threads (scoring of choices) are not recorded.
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        was_enabled = gc.isenabled()
        with torch.cuda.stream(self._stream):
            gc.disable()
            try:
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    output = run()
                finally:
                    graph.capture_end()
            finally:
                if was_enabled:
                    gc.enable()
        return Recording(graph.replay, output)
