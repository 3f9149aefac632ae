"""The layers that the models share, beside torch's own."""

import torch
from torch import Tensor, nn

from truefit.core.seeds import torch_seed


class Dropout(nn.Module):
    """Zeroes each value with probability `p` in training and scales the rest by 1 / (1 - p) (Srivastava et al., 2014).

    An epoch's masks depend on (seed, layer, epoch) alone, where `torch.nn.Dropout` draws from the global stream. A compiled
    graph, which cannot draw from a generator, gets masks drawn beforehand in the buffer `keep`.
    """

    keep: Tensor | None

    def __init__(self, p: float, seed: int, layer: int) -> None:
        super().__init__()
        self.p, self.seed, self.layer = p, seed, layer
        self.register_buffer("keep", None, persistent=False)
        self.begin_epoch(0, torch.device("cpu"))

    def begin_epoch(self, epoch: int, device: torch.device) -> None:
        """Set the generator, on the device of the values to come, to the epoch's own stream."""
        self.generator = self.stream(epoch, device)

    def stream(self, epoch: int, device: torch.device, *shard: int) -> torch.Generator:
        """Return the epoch's stream, or that of one shard of its batches."""
        return torch.Generator(device).manual_seed(torch_seed(self.seed, "dropout", self.layer, epoch, *shard))

    def forward(self, values: Tensor) -> Tensor:
        """Return the values [B, H], masked and scaled in training."""
        if not self.training:
            return values
        keep = self.draw(torch.empty_like(values)) if self.keep is None else self.keep
        return values * keep / (1 - self.p)

    def draw(self, mask: Tensor) -> Tensor:
        """Fill `mask` [B, H] with the next mask of ones and zeroes, and return it."""
        return mask.bernoulli_(1 - self.p, generator=self.generator)


def linear_on_meta(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer without memory, whose parameters are yet to come."""
    # `nn.utils.skip_init` would draw nothing either, and imports a computer algebra system, sympy, to make room for them.
    return nn.Linear(inputs, outputs, device="meta")
