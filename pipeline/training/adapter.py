"""Train one plain PEFT LoRA adapter of a causal language model on the answers of one task."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from .examples import IGNORE, Example, collate, epochs


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that decide the result of a training, besides model and data (paper: r=8, alpha=16, q and v)."""

    r: int
    alpha: int
    target_modules: tuple[str, ...]
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    max_tokens: int
    validation_share: float
    validation_examples: int
    evaluate_every: int
    seed: int


class AdapterTrainer:
    """Trains adapters of one base model, one after another; the base weights do not change.

    The loss is the cross-entropy of the answer tokens. Logits are computed for these alone: the output projection over
    the whole prompt would cost a fifth of a small model's step.
    """

    def __init__(self, model: Any, settings: TrainingSettings, pad_token_id: int) -> None:
        self.model = model
        self.settings = settings
        self.pad = pad_token_id

    def train(
        self, train: Sequence[Example], validation: Sequence[Example], progress: Callable[[str], None]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Train one adapter; return its best weights by validation loss (PEFT names, bf16) and the metrics."""
        torch.manual_seed(self.settings.seed)
        peft = get_peft_model(self.model, self._lora_config())
        try:
            return self._fit(peft, train, validation, progress)
        finally:
            self.model = peft.unload()

    def save(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as `PeftModel.from_pretrained` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self._lora_config()
        config.base_model_name_or_path = str(self.model.config.name_or_path).rstrip("/").rsplit("/", 1)[-1]
        config.inference_mode = True
        config.save_pretrained(folder)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _lora_config(self) -> LoraConfig:
        s = self.settings
        modules = list(s.target_modules)
        return LoraConfig(r=s.r, lora_alpha=s.alpha, target_modules=modules, task_type="CAUSAL_LM", lora_dropout=0.0)

    def _fit(
        self,
        peft: PeftModel,
        train: Sequence[Example],
        validation: Sequence[Example],
        progress: Callable[[str], None],
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        s = self.settings
        parameters = [p for p in peft.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        history = [{"step": 0, "validation_loss": self._loss_over(validation)}]
        best: tuple[float, dict[str, torch.Tensor]] = (math.inf, {})
        tokens, start = 0, time.monotonic()
        for step, batch in enumerate(islice(epochs(train, s.batch_size, s.seed), s.steps), start=1):
            loss = self._loss(batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tokens += sum(map(len, batch))
            if step % s.evaluate_every == 0 or step == s.steps:
                now = self._loss_over(validation)
                history.append({"step": step, "validation_loss": now})
                if now < best[0]:
                    state = get_peft_model_state_dict(peft)
                    best = (now, {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in state.items()})
                rate = tokens / (time.monotonic() - start)
                progress(f"step {step}/{s.steps} loss {loss.item():.3f} validation {now:.3f} {rate:.0f} tokens/s")
        return best[1], {"settings": asdict(s), "history": history, "best_validation_loss": best[0], "tokens": tokens}

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then linear decay to 5 %."""
        s = self.settings
        return min(1.0, (step + 1) / max(1, s.warmup_steps)) * max(0.05, 1 - step / s.steps)

    def _loss(self, batch: Sequence[Example]) -> torch.Tensor:
        """Mean cross-entropy of the answer tokens of ``batch``."""
        device = self.model.device
        tensors = {name: value.to(device) for name, value in collate(batch, self.pad).items()}
        labels = tensors.pop("labels")[:, 1:]
        answered = labels != IGNORE
        hidden = self.model.get_decoder()(**tensors, use_cache=False).last_hidden_state[:, :-1]
        logits = self.model.get_output_embeddings()(hidden[answered])
        return cross_entropy(logits.float(), labels[answered])

    @torch.no_grad()
    def _loss_over(self, examples: Sequence[Example]) -> float:
        """Mean loss over batches of examples of similar lengths."""
        ordered = sorted(examples, key=len)
        size = self.settings.batch_size
        losses = [self._loss(ordered[i : i + size]).item() for i in range(0, len(ordered), size)]
        return sum(losses) / len(losses)
