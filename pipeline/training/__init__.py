"""Train the bank's LoRA adapters with the `peft` library."""

from .adapter import AdapterTrainer, TrainingSettings
from .examples import Example, encode_examples, split_validation

__all__ = ["AdapterTrainer", "Example", "TrainingSettings", "encode_examples", "split_validation"]
