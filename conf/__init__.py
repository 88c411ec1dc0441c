"""Hydra config groups and the pydantic models that check them."""

from .compose import as_yaml, load_settings, saved_settings

__all__ = ["as_yaml", "load_settings", "saved_settings"]
