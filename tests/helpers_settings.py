"""The committed settings, and the class that reads each section of them."""

from pathlib import Path

from truefit.core.config import Settings
from truefit.core.launch import LaunchSettings
from truefit.data.generating import GenerateSettings
from truefit.evaluation.report import EvaluateSettings
from truefit.ingest.prepare import PrepareSettings
from truefit.tracking.run import TrackSettings
from truefit.training.checkpoint import CheckpointSettings
from truefit.training.settings import TrainSettings

PARAMS_YAML = Path(__file__).parents[1] / "params.yaml"

SECTIONS: dict[str, type[Settings]] = {
    "generate": GenerateSettings,
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "track": TrackSettings,
    "checkpoint": CheckpointSettings,
    "launch": LaunchSettings,
}
