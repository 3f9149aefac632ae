"""The MLflow model of a run: a folder that MLflow loads and serves, with nothing in it that is pickled."""

import logging
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from truefit.data.table import Table
from truefit.tracking.names import MODEL


def pack_model(loader: ModuleType, model: Mapping[str, bytes], table: Table, key: str, time: int) -> dict[str, bytes]:
    """Return the files of an MLflow model, by their paths in the run.

    `loader`, `model` and `table` are those of `Run.log_model`; `key` and `time`, in milliseconds, the run's.
    """
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # tells what it is about to do
    # MLflow refuses int64 for its double, int64 and truth values for its string, and texts for its boolean; in JSON it takes
    # "no" for True, null for False and 01/02 for the 2nd of January. So it hands on what it gets, and the loader looks at it.
    kind = AnyType()  # type: ignore[no-untyped-call]
    columns = Schema([ColSpec(kind, column.name, required=column.fill is None) for column in table.columns])
    # The run's own key and time, so that a training which was stopped here records the same bytes when it goes on.
    created = str(datetime.fromtimestamp(time / 1000, UTC).replace(tzinfo=None))
    types = {column.name: column.mlflow_type for column in table.columns}
    described = Model(artifact_path=MODEL, model_uuid=key, utc_time_created=created, metadata={"types": types})
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
            signature=ModelSignature(columns, Schema([TensorSpec(np.dtype(table.dtype), (-1,))])),
            input_example=loader.example_rows(table),
            # Given, since MLflow would load the model in a process of its own to find them out; torch's without its build.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in loader.PACKAGES],
        )
        return {f"{MODEL}/{path.relative_to(packed)}": path.read_bytes() for path in packed.rglob("*") if path.is_file()}
