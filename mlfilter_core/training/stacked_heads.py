"""Several heads of one shape, stacked along the first dimension of their tensors so that one step trains them all."""

from itertools import pairwise

import torch
from torch.nn import functional

from mlfilter_core.compute.linear import ACTIVATIONS
from mlfilter_core.config.training import HeadRecipe


class StackedHeads:
    """Heads with an optimizer. AdamW works element by element, so each head takes the steps it would take alone."""

    def __init__(self, recipe: HeadRecipe, n_heads: int, widths: tuple[int, ...], device: torch.device) -> None:
        """Draws the first weights from torch's random generator.

        Args:
            recipe: Activation, dropout and optimizer of the heads.
            n_heads: Number of heads.
            widths: Widths of the embeddings, of the hidden layers and of the outputs.
            device: Device of the tensors.
        """
        self._weights, self._biases = [], []
        for n_in, n_out in pairwise(widths):  # initialised like torch.nn.Linear
            bound = n_in**-0.5
            self._weights.append(torch.empty(n_heads, n_in, n_out, device=device).uniform_(-bound, bound))
            self._biases.append(torch.empty(n_heads, 1, n_out, device=device).uniform_(-bound, bound))
        self.n_heads = n_heads
        self._activate = ACTIVATIONS[recipe.activation]
        self._dropout = recipe.dropout
        parameters = [parameter.requires_grad_() for parameter in (*self._weights, *self._biases)]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=device.type != "mps"
        )

    def outputs(self, inputs: torch.Tensor, is_training: bool) -> torch.Tensor:
        """Returns (n_heads, n, n_outputs) for (n, dim)."""
        hidden = inputs.expand(self.n_heads, *inputs.shape)
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if i:
                hidden = functional.dropout(self._activate(hidden), self._dropout, is_training)
            hidden = torch.baddbmm(bias, hidden, weight)
        return hidden

    def step(self, losses: torch.Tensor) -> None:
        """Takes one optimizer step, given the loss of each head, (n_heads,)."""
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def last(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns copies of the last head's weights, float64 (n_out, n_in) of each layer, and biases, (n_out,)."""
        weights = [weight.detach()[-1].T.double().cpu() for weight in self._weights]
        return weights, [bias.detach()[-1, 0].double().cpu() for bias in self._biases]
