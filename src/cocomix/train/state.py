"""Everything of a training run that is a tensor, under names that do not depend on how many processes share it."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Parameters, persistent buffers and AdamW's moments, by name; what is written into them is written into the run.

    A tied parameter appears once. Moments that do not exist yet, before the first step, are made as zeros.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        if parameter.requires_grad:
            for kind, moment in _moments(optimizer, parameter).items():
                tensors[f"optimizer.{name}.{kind}"] = moment
    kept = module.state_dict().keys()
    return tensors | {f"model.{name}": buffer for name, buffer in module.named_buffers() if name in kept}


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def total_norm(norms: list[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm over several modules' gradients, from their own norms, a plain scalar."""
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))
