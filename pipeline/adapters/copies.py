"""Weights of the base model that PEFT saved in an adapter's file: each must equal the base model's own.

PEFT saves embeddings and heads that an adapter changes or that were resized, and the modules and biases that
`modules_to_save` and `bias` name, whether training changed them or not. A mixture has no place for changed ones.
"""

import torch

_MEND = "save a base model with this weight and name it as model.path"


def copy_problem(name: str, copy: torch.Tensor, weight: torch.Tensor | None, model: str) -> str | None:
    """Return why a saved copy cannot be left out, and what to do; None if it equals the base model's ``weight``.

    ``weight``: None if the model has none of that name. Only the shapes are compared if its values are not known, on
    torch's meta device.
    """
    if weight is None:
        return f"carries {name}, which the model {model} does not have: was it trained for another kind of model?"
    if not weight.is_floating_point():
        return f"carries {name}, which is quantised in the model, so they cannot be compared (model.quantization=none)"
    if copy.shape != weight.shape:
        if copy.ndim == weight.ndim == 2 and copy.shape[1] == weight.shape[1]:
            return vocabulary_problem(name, len(copy), len(weight), model)
        return f"carries {name} of shape {list(copy.shape)}, the model {model} has {list(weight.shape)}; {_MEND}"
    if weight.is_meta:
        return None
    if not _same(copy, weight):
        return (
            f"carries {name}, and training changed it: a mixture changes layers by LoRA alone; {_MEND}, or retrain"
            " without bias, modules_to_save and fully trained embeddings"
        )
    return None


def vocabulary_problem(name: str, tokens: int, models_tokens: int, model: str) -> str:
    """Return the message on an adapter that was trained with a resized vocabulary."""
    return (
        f"was trained with a vocabulary of {tokens} tokens ({name}), the model {model} has {models_tokens}; give the"
        " model with the resized vocabulary as model.path (resize_token_embeddings, then save_pretrained)"
    )


def _same(copy: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether a saved copy equals the base model's weight, which may be loaded in another dtype."""
    here = copy.to(weight.device)
    if not copy.is_floating_point():
        return False
    return torch.equal(here.to(weight.dtype), weight) or torch.equal(here, weight.to(copy.dtype))
