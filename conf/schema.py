"""What `jobs.generate` accepts: one frozen model for each config group, unknown keys refused."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, and no key that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Strict):
    """The base model (`conf/model`)."""

    path: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    prompt_format: Literal["raw", "chat"]
    trust_remote_code: bool
