"""What a training is made of, by its settings: the model, the engine, the training rows in their order."""

from collections.abc import Sequence

import torch

from truefit.core.errors import TruefitError
from truefit.data.batches import EpochChunks
from truefit.data.dataset import TableDataset
from truefit.data.shards import WHOLE, Cut
from truefit.model.models import Model, build_model
from truefit.model.scaling import fit_scaling
from truefit.training.engines import choose_engine, make_engine, make_sharded
from truefit.training.engines.base import Engine
from truefit.training.group import ALONE, Group
from truefit.training.settings import TrainSettings


def with_engine(settings: TrainSettings, rows: int, device: torch.device) -> tuple[TrainSettings, str]:
    """Return the settings with an engine, where they say auto the one for so many rows; and then a line that says why."""
    if settings.engine != "auto":
        return settings, ""
    engine, reason = choose_engine(settings.steps(rows), device, settings.step, settings.compile)
    return settings.model_copy(update={"engine": engine}), f"engine: {engine}, since {reason}"


def untrained_model(datasets: Sequence[TableDataset], settings: TrainSettings) -> Model:
    """Return the model before any step, on the CPU, with its scaling by the first of `datasets`, the training rows."""
    scale = fit_scaling(settings.scale, datasets)
    return build_model(settings.model, scale, datasets[0].table, settings.seed)


def build_engine(
    model: Model, train_rows: TableDataset, settings: TrainSettings, device: torch.device, group: Group = ALONE
) -> Engine:
    """Return the engine for the model's body, and for a process of the group.

    Raises TruefitError where it cannot compile, the device lacks float64, or a batch has fewer rows than shards.
    """
    assert settings.engine != "auto"
    if device.type == "mps" and train_rows.table.dtype == "float64":
        raise TruefitError("train.device: found mps with prepare.dtype float64, allowed: float32, which is all that it has")
    rows, weighted = len(train_rows), train_rows.table.weight is not None
    graph = settings.compile.graph(rows, settings.batch_rows(rows), train_rows.row_bytes, weighted)
    if settings.shards > (most := settings.batch_rows(rows)):
        found = f"train.shards: found {settings.shards}"
        raise TruefitError(f"{found}, allowed: a power of two up to the rows of a batch, {most}")
    if settings.shards == 1:
        return make_engine(settings.engine, model.body, settings.step, device, graph)
    return make_sharded(settings.engine, model.body, settings.step, device, group, group.cut(settings.shards), graph)


def epoch_chunks(
    model: Model, train_rows: TableDataset, settings: TrainSettings, device: torch.device, cut: Cut = WHOLE
) -> EpochChunks:
    """Return the training rows, or a process's own of them, in the order of the settings, scaled as the model's."""
    batch_size = settings.batch_rows(len(train_rows))
    return EpochChunks(train_rows, batch_size, settings.seed, settings.shuffle, settings.epochs, device, model.scale, cut)
