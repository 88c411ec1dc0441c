"""Hydra config groups and the pydantic models that check them."""

from .compose import load_settings, saved_settings

__all__ = ["load_settings", "saved_settings"]
