"""Scaling: features and target at a mean of 0 and a standard deviation of 1 on the training rows, and predictions back again.

It is part of the model, and applied to a chunk before an engine sees it: an engine knows scaled rows and nothing else.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from truefit.core.config import Settings
from truefit.core.errors import TableError
from truefit.data.batches import Chunk, sequential_loader
from truefit.data.dataset import TableDataset, features_and_target, target_and_weight
from truefit.data.moments import Moments

# A row of few columns is too short a piece of work: as many as make so many numbers are scaled as one.
LONG_ROW = 2_048


class ScaleSettings(Settings):
    """`train.scale`; `log` is the standardised logarithm of a target that is positive."""

    features: Literal["standard", "none"] = "standard"
    target: Literal["standard", "log", "none"] = "standard"


class Scaling(nn.Module):
    """(x - mean) / std, with the training rows' mean and std as buffers; a constant column, whose std is 0, is only centred.

    What is not to be scaled has no buffers. `mean` and `std` hold a number for each feature, and the target's, [F + 1]. A
    row's weight stays as it is.
    """

    feature_mean: Tensor | None
    feature_std: Tensor | None
    target_mean: Tensor | None
    target_std: Tensor | None

    def __init__(self, settings: ScaleSettings, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self._features = len(mean) - 1
        std = torch.where(std > 0, std, 1)
        for name, place, how in [("feature", slice(-1), settings.features), ("target", slice(-1, None), settings.target)]:
            for kind, values in [("mean", mean), ("std", std)]:
                self.register_buffer(f"{name}_{kind}", None if how == "none" else values[place].clone())

    @property
    def unit(self) -> float:
        """One scaled target, in the unit of the data's target, or of its logarithm."""
        return 1.0 if self.target_std is None else float(self.target_std)

    def forward(self, rows: Tensor) -> Chunk:
        """Scale rows [C, F + 1], the target last, where they lie; return views of them: (features [C, F], target [C, 1]).

        Rows with weights are [C, F + 2], and the target is [C, 2].
        """
        features, target = features_and_target(rows, self._features)
        if self.settings.target == "log":
            target[:, :1].log_()
        if self.feature_mean is not None or self.target_mean is not None:
            _scale(rows, self._row("mean", rows.new_zeros(rows.shape[1])), self._row("std", rows.new_ones(rows.shape[1])))
        return features, target

    def _row(self, kind: str, unscaled: Tensor) -> Tensor:
        """Return the numbers of that kind [F + 1 or 2], with those of `unscaled` for what is not to be scaled."""
        feature, target = getattr(self, f"feature_{kind}"), getattr(self, f"target_{kind}")
        own_feature, own_target, weight = unscaled.tensor_split([self._features, self._features + 1])
        return torch.cat([own_feature if feature is None else feature, own_target if target is None else target, weight])

    def scale_features(self, features: Tensor) -> Tensor:
        """Return the features [B, F], scaled."""
        if self.feature_mean is None or self.feature_std is None:
            return features
        return (features - self.feature_mean) / self.feature_std

    def unscale(self, prediction: Tensor) -> Tensor:
        """Return scaled predictions [B, 1] in the data's units."""
        if self.target_mean is None or self.target_std is None:
            return prediction
        prediction = prediction * self.target_std + self.target_mean
        return prediction.exp() if self.settings.target == "log" else prediction

    def unscale_line(self, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bias, a scalar, and the weights [F] of a line between scaled values as those between the data's own.

        All are float64. With `log` they are those of the target's logarithm.
        """
        if self.feature_mean is not None and self.feature_std is not None:
            weight = weight / self.feature_std.double()
            bias = bias - weight @ self.feature_mean.double()
        if self.target_mean is not None and self.target_std is not None:
            mean, std = self.target_mean[0].double(), self.target_std[0].double()
            bias, weight = bias * std + mean, weight * std
        return bias, weight


def _scale(rows: Tensor, mean: Tensor, std: Tensor) -> None:
    """Scale rows [C, W] by mean and std [W], in place."""
    together = max(1, LONG_ROW // len(mean))
    whole = len(rows) // together * together
    long = rows[:whole].view(-1, together * len(mean))
    long.sub_(mean.repeat(together)).div_(std.repeat(together))
    rows[whole:].sub_(mean).div_(std)


def unfitted_scaling(settings: ScaleSettings, width: int) -> Scaling:
    """Return a scaling of so many features, whose numbers are yet to come."""
    return Scaling(settings, torch.zeros(width + 1), torch.ones(width + 1))


def fit_scaling(settings: ScaleSettings, datasets: Sequence[TableDataset]) -> Scaling:
    """Return the scaling by the first of `datasets`, the training rows, in their dtype.

    Raises TableError where the target is to become its logarithm and some row's, of any of them, is not positive.
    """
    table = datasets[0].table
    mean, std = np.array(table.mean), np.array(table.std)
    if settings.target == "log":
        moments, *_ = [_log_moments(rows) for rows in datasets]
        mean[-1:], std[-1:] = moments.mean, moments.std
    dtype = getattr(torch, table.dtype)
    return Scaling(settings, torch.from_numpy(mean).to(dtype), torch.from_numpy(std).to(dtype))


def _log_moments(rows: TableDataset) -> Moments:
    moments, before = Moments(1), 0
    for _, target in sequential_loader(rows):
        values, *weight = (part.double().numpy() for part in target_and_weight(target))
        if (values <= 0).any():
            row = int(np.argmax(values <= 0))
            place = f"{rows.table.csv.path}: column {rows.table.target!r}, {rows.split} row {before + row}"
            found = f"found {values[row, 0]:g}, allowed: a positive number with train.scale.target: log"
            raise TableError(f"{place}: {found}; or take train.scale.target: standard")
        moments.add(np.log(values), *(part[:, 0] for part in weight))
        before += len(values)
    return moments
