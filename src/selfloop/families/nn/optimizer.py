"""AdamW with gradient clipping and an average of the parameters, on long vectors (Loshchilov and Hutter 2017, 1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfloop.families.nn.settings import TrainingSettings

# AdamW's averages below this size are set to 0 every 50 steps. In 50 steps they decay to no less than 1e-38 if the betas
# are 0.9 or more, so they never become denormal numbers, with which processors take many times as long.
ADAM_UNDERFLOW = 1e-35


class AdamW:
    """The optimizer of a network's trainable parameters. Matrices and kernels decay, biases and norms do not.

    The parameters and AdamW's averages are views of long vectors, so one operation checks, averages or stores all of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: TrainingSettings) -> None:
        self.settings, self.decays = settings, [settings.weight_decay if p.ndim >= 2 else 0.0 for p in parameters]
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.first, self.second = torch.zeros_like(self.vector), torch.zeros_like(self.vector)
        self.average = None if settings.ema_decay is None else torch.zeros_like(self.vector)
        self.n_steps = torch.zeros((), device=self.vector.device)
        counts = [p.numel() for p in parameters]
        self.views = [
            [view.view(p.shape) for view, p in zip(torch.split(vector, counts), parameters, strict=True)]
            for vector in (self.vector, self.first, self.second)
        ]
        for p, view in zip(parameters, self.views[0], strict=True):
            p.data = view

    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """One training step. The gradients are in the order of the parameters."""
        gradients = [gradient.contiguous() for gradient in gradients]  # AdamW reads memory in the parameters' order
        if len({gradient.data_ptr() for gradient in gradients}) < len(gradients):  # a + b has one gradient tensor for both
            gradients = [gradient.clone() for gradient in gradients]  # AdamW scales each in place
        scale = None
        if self.settings.max_grad_norm is not None:
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            scale = (norm / self.settings.max_grad_norm).clamp_(min=1.0)
        self.n_steps += 1
        for decay in set(self.decays):
            indices = [i for i, of_parameter in enumerate(self.decays) if of_parameter == decay]
            torch._fused_adamw_(  # as torch.optim calls it; torch.optim would keep a step count for every parameter
                [self.views[0][i] for i in indices],
                [gradients[i] for i in indices],
                [self.views[1][i] for i in indices],
                [self.views[2][i] for i in indices],
                [],
                [self.n_steps] * len(indices),
                lr=learning_rate,
                beta1=self.settings.beta1,
                beta2=self.settings.beta2,
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
            )
        if self.average is not None and self.settings.ema_decay is not None:
            self.average.lerp_(self.vector, 1 - self.settings.ema_decay)

    def is_finite(self) -> bool:
        """True if every parameter is finite."""
        return bool(torch.isfinite(self.vector).all())

    def clear_underflow(self) -> None:
        """Set averages of gradients that stayed 0 to 0. It changes no parameter."""
        for average in (self.first, self.second):
            average.copy_(functional.hardshrink(average, ADAM_UNDERFLOW))

    def apply_average(self) -> None:
        """Replace the parameters by their average over the training steps, without the initial parameters, if there is one."""
        if self.average is not None and self.settings.ema_decay is not None:
            self.vector.copy_(self.average / (1 - self.settings.ema_decay**self.n_steps))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, parameters included."""
        average = {} if self.average is None else {"average": self.average}
        return {"vector": self.vector, "first": self.first, "second": self.second, "step": self.n_steps} | average
