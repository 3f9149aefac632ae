"""Section `train` of params.yaml: all that decides a training, beside its table."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.errors import TruefitError
from truefit.core.text import as_yaml
from truefit.data.batches import Shuffle
from truefit.model.files import ModelDescription
from truefit.model.models import ModelSettings
from truefit.model.scaling import ScaleSettings
from truefit.training.device import DeviceName
from truefit.training.engines import EngineName
from truefit.training.engines.base import StepSettings
from truefit.training.engines.compiled_engine import CompileSettings
from truefit.training.losses import LossSettings
from truefit.training.optimizers import HIGHEST, OptimizerSettings
from truefit.training.schedules import ScheduleSettings


def _check_batch_size(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("all, or a whole number of at least 1")


def _check_shards(value: int) -> int:
    if value & (value - 1):
        raise ValueError("a power of two")
    return value


class EarlyStoppingSettings(Settings):
    """`train.early_stopping`: stop after `patience` epochs in which the validation loss fell by no more than `min_delta`."""

    patience: int | None = Field(None, ge=1)
    min_delta: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _min_delta_needs_patience(self) -> Self:
        if self.patience is None:
            require_defaults(self, ("min_delta",), "without a patience")
        return self


class TrainSettings(Settings):
    """Section `train`."""

    engine: Literal[EngineName, "auto"] = "torch"
    device: DeviceName = "auto"
    seed: int = Field(42, ge=0)
    threads: int = Field(1, ge=1, le=1024)
    scale: ScaleSettings = ScaleSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    batch_size: Annotated[int | Literal["all"], BeforeValidator(_check_batch_size)] = 16
    shards: Annotated[int, AfterValidator(_check_shards)] = Field(1, ge=1)
    shuffle: Shuffle = "full"
    epochs: int = Field(50, ge=1)
    clip_norm: float | None = Field(None, gt=0, le=HIGHEST)
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    compile: CompileSettings = CompileSettings()

    @model_validator(mode="after")
    def _learning_rate_falls(self) -> Self:
        if self.schedule.min_lr > self.optimizer.lr:
            raise invalid_value("schedule.min_lr", self.schedule.min_lr, f"at most train.optimizer.lr, {self.optimizer.lr}")
        return self

    @model_validator(mode="after")
    def _batch_has_a_row_for_each_shard(self) -> Self:
        if self.batch_size != "all" and self.shards > self.batch_size:
            raise invalid_value("shards", self.shards, f"a power of two up to train.batch_size, {self.batch_size}")
        if self.shards > 1 and self.compile.batches != (default := CompileSettings().batches):
            allowed = f"{default} with shards above 1, since each shard's gradient is a graph"
            raise invalid_value("compile.batches", self.compile.batches, allowed)
        return self

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> Self:
        if self.engine == "compiled" and self.device == "mps":
            raise invalid_value("engine", self.engine, "torch or auto with device mps")
        if self.engine in ("compiled", "auto"):
            return self
        if self.compile != (default := CompileSettings()):
            raise invalid_value(
                "compile", self.compile.model_dump(), f"{as_yaml(default.model_dump())} with engine {self.engine}"
            )
        if self.engine == "torch":
            return self
        for needed, found in [
            ("the model linear", self.model.name == "linear"),
            ("the loss mse", self.loss.name == "mse"),
            ("plain sgd", self.optimizer == OptimizerSettings(lr=self.optimizer.lr)),
            ("no clip_norm", self.clip_norm is None),
            ("whole batches (shards: 1)", self.shards == 1),
        ]:
            if not found:
                raise invalid_value("engine", self.engine, f"torch, since {self.engine} takes {needed}")
        if self.engine == "numpy" and self.device not in ("auto", "cpu"):
            raise invalid_value("engine", self.engine, f"autograd or torch with device {self.device}")
        return self

    @property
    def device_name(self) -> str:
        """The device, as choose_device takes it; the engine numpy has the CPU alone."""
        return "cpu" if self.engine == "numpy" else self.device

    @property
    def step(self) -> StepSettings:
        """What the engine takes of the settings."""
        return StepSettings(self.loss, self.optimizer, self.clip_norm)

    @property
    def title(self) -> str:
        """The model and how it is trained, in a few words that tell runs apart."""
        return f"{self.model.name} {self.optimizer.name} lr={self.optimizer.lr:g} batch={self.batch_size} {self.engine}"

    def beside_the_model(self) -> dict[str, Any]:
        """Return the settings that a model's description holds beside those that rebuild it."""
        return self.model_dump(mode="json", exclude={"model", "scale"})

    def batch_rows(self, rows: int) -> int:
        """Return the rows of a batch."""
        return rows if self.batch_size == "all" else min(rows, self.batch_size)

    def steps(self, rows: int) -> int:
        """Return the steps of all epochs."""
        return self.epochs * -(-rows // self.batch_rows(rows))


def trained_with(description: ModelDescription, path: Path) -> TrainSettings:
    """Return the settings that the model described in `path` was trained with; raises TruefitError where it lacks any."""
    given = {"model": description.model.model_dump(), "scale": description.scale.model_dump(), **description.training}
    try:
        settings = TrainSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"training.{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        if settings.beside_the_model() == description.training:
            return settings
        fault = "training: lacks settings, allowed: all that stage train writes"
    raise TruefitError(f"{path}: {fault}; `dvc repro --force train` writes it anew")
