"""vLLM as the engine: each mixture is written as one LoRA adapter of the joined rank, which vLLM then serves.

vLLM is imported when a `backend.VllmBackend` starts, and only then: nothing changes for those who do not have it.
"""
