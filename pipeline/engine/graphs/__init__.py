"""Record decode steps once and replay them: small models on a GPU wait for Python, not for memory."""

from .decode import DecodeGraphs
from .record import CudaRecorder, Recorder

__all__ = ["CudaRecorder", "DecodeGraphs", "Recorder"]
