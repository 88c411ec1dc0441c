"""DoRA's gain: how far the magnitude vector stretches each output row."""

import torch
from torch import nn

from pipeline.adapters import ModuleWeights

from .layers import matrix


def gain(module: nn.Module, weight: torch.Tensor, weights: ModuleWeights) -> torch.Tensor:
    """m / ||W + s B A||, norms of the rows of [out x in], fp32 [out] on the host (arXiv 2402.09353, eq. 5).

    One DoRA adapter alone computes ``g * (W x + s B A x) + bias``. A mixture of weights w_i is defined as the mixture
    of what the adapters add: ``W x + bias + sum w_i ((g_i - 1) W x + g_i s_i B_i A_i x)``, which is again a linear
    layer, of weight ``W + sum w_i (g_i (W + s_i B_i A_i) - W)``. (PEFT applies several active DoRA adapters one to
    the output of the other, so that their order matters: `peft.tuners.lora.variants.DoraLinearVariant`.)
    """
    assert weights.magnitude is not None
    a, b = weights.A.to(weight.device).float(), weights.B.to(weight.device).float()
    norms: torch.Tensor = torch.linalg.norm(matrix(module, weight).float() + weights.scale * (b @ a), dim=1)
    return weights.magnitude.float() / norms.cpu()
