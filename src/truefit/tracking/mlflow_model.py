"""The MLflow model of a run: a folder that MLflow loads and serves, with nothing in it that is pickled."""

import logging
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from truefit.tracking.names import MODEL

if TYPE_CHECKING:
    import pandas as pd


def pack_model(
    loader: ModuleType, model: Mapping[str, bytes], example: "pd.DataFrame", dtype: str, key: str, time: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files of an MLflow model, by their paths in the run, and what MLflow's list of such models says of it.

    `loader`, `example` and `dtype` are those of `Run.log_model`; `key` and `time`, in milliseconds, the run's.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # tells what it is about to do
    columns = Schema([ColSpec(DataType.double, name) for name in example.columns])
    # The run's own key and time, so that a training which was stopped here records the same bytes when it goes on.
    created = str(datetime.fromtimestamp(time / 1000, UTC).replace(tzinfo=None))
    described = Model(artifact_path=MODEL, model_uuid=key, utc_time_created=created)
    with TemporaryDirectory(prefix="truefit-model-") as temporary:
        code, data, packed = (Path(temporary, name) for name in (loader.__name__.partition(".")[0], "model", "packed"))
        package = Path(str(loader.__file__)).parents[1]
        for room in loader.ROOMS:
            shutil.copytree(package / room, code / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(package / "__init__.py", code)
        data.mkdir()
        for name, content in model.items():
            (data / name).write_bytes(content)
        pyfunc.save_model(
            packed,
            loader_module=loader.__name__,
            data_path=str(data),
            code_paths=[str(code)],
            mlflow_model=described,
            signature=ModelSignature(columns, Schema([TensorSpec(np.dtype(dtype), (-1,))])),
            input_example=example,
            # Given, since MLflow would load the model in a process of its own to find them out; torch's without its build.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in loader.PACKAGES],
        )
        files = {f"{MODEL}/{path.relative_to(packed)}": path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    return files, described.get_tags_dict()
