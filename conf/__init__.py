"""Hydra config groups and the pydantic models that check them."""

from .compose import load_settings

__all__ = ["load_settings"]
