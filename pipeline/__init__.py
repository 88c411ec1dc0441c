"""Batch inference that answers every record with its own blend of LoRA adapters."""
