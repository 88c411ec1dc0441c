"""Decode steps that are recorded once and replayed: small models on a GPU wait for Python, not for memory."""

from .decode import DecodeGraphs
from .record import CudaRecorder, Recorder

__all__ = ["CudaRecorder", "DecodeGraphs", "Recorder"]
