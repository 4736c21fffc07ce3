"""Optimisers and learning-rate schedules as the release runs them (Keras conventions)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from ..config.finetuning import FinetuneOptimConfig
from ..config.pretraining import OptimConfig
from ..model.vatt import Classifier


class Adam(torch.optim.Adam):
    """Adam with eps added to sqrt(v) before bias correction, as Keras does.

    torch adds it after: sqrt(v) / c + eps with c = sqrt(1 - beta2^t). Passing eps / c makes that (sqrt(v) + eps) / c.
    Whole float32 parameters are updated by one kernel that reads and writes everything once (torch's `fused`); its
    results differ from those of the other form in the last bits. Its state says which form it is, so that a run
    which began with the other one goes on with that.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig):
        self.keras_eps = config.eps
        betas = (config.beta1, config.beta2)
        trained = [p for p in parameters if p.requires_grad]
        fused = True if all(map(is_whole, trained)) else None
        super().__init__(trained, lr=config.rate, betas=betas, eps=config.eps, fused=fused)
        self.updates = 0

    def scale_rates(self, factors: Mapping[nn.Parameter, float]) -> None:
        """Make a group of the parameters of each factor; `train_step` multiplies their rate by its `scale`."""
        (group,) = self.param_groups
        parts: dict[float, list[nn.Parameter]] = {1.0: []}
        for parameter in group["params"]:
            parts.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        self.param_groups[:] = [{**group, "params": params, "scale": scale} for scale, params in parts.items()]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.updates += 1
        for group in self.param_groups:
            group["eps"] = self.keras_eps / math.sqrt(1 - group["betas"][1] ** self.updates)
        return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.updates = max((int(s["step"]) for s in self.state.values()), default=0)


def is_whole(parameter: nn.Parameter) -> bool:
    """Tell whether it is a float32 tensor on a CPU or CUDA that is not sharded over processes."""
    known = parameter.device.type in ("cpu", "cuda") and parameter.dtype == torch.float32
    return known and type(parameter.data) is torch.Tensor


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale all gradients together so that their norm is at most `largest`; 0 leaves them alone.

    Returns:
        The norm before.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


class SGD(torch.optim.Optimizer):
    """SGD with Keras momentum, for fine-tuning: velocity = momentum * velocity - rate * gradient, added to the weight.

    The rate is inside the velocity, so that after a change of rate the steps differ from `torch.optim.SGD`'s. The
    state `momentum` of a parameter is that velocity, as official checkpoints hold it.
    """

    def __init__(self, parameters: ParamsT, rate: float, momentum: float = 0.9):
        super().__init__(parameters, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(parameter.grad, alpha=-group["lr"])
                parameter.add_(velocity)
        return loss


def finetuning_optimizer(model: Classifier, config: FinetuneOptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `config`.

    Its groups say by `scale` what the rate of a step is multiplied by, and by `head` whether they are of the class
    head. A model whose weights are all alike has one group, as runs of earlier versions have.
    """
    decays = config.weight_decay if config.optimizer == "adamw" else 0.0
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        head = name.startswith("head.")
        scale = 1.0 if head else config.layer_decay ** decays_down_to(name, model)
        key = head or not config.head_steps, scale, decays if parameter.ndim > 1 else 0.0
        groups.setdefault(key, []).append(parameter)
    made = [
        {"params": params, "head": head, "scale": scale, "weight_decay": decay}
        for (head, scale, decay), params in groups.items()
    ]
    if config.optimizer == "sgd":
        return SGD(made, config.rate, config.momentum)
    whole = all(map(is_whole, model.parameters()))
    return torch.optim.AdamW(made, lr=config.rate, fused=True if whole else None)


def decays_down_to(name: str, model: Classifier) -> int:
    """Return how often the rate decays down to a weight of the backbone: once for the uppermost layer."""
    depth = model.backbone.encoder_config(model.modality).layers
    if found := re.search(r"\.layers\.(\d+)\.", name):
        return depth - int(found[1])
    return depth + 1 if ".tokens." in name else 0
