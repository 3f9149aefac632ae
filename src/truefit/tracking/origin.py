"""What a run records of where it comes from, before its first step.

Reads params.yaml, dvc.yaml and dvc.lock, the repository, the sources and the environment; writes nothing. Guarantees that the
digest is of the code that is in use: that of the folder which this module was imported from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from truefit.core.code import code_digest, read_code
from truefit.core.config import Params, flatten
from truefit.data.table import Table
from truefit.tracking.names import (
    CODE_TAG,
    COMMIT_TAG,
    CSV_TAG,
    DIRTY_TAG,
    ENGINE_TAG,
    OMITTED_TAG,
    RECORD,
    RECORDED_ENVIRONMENT,
    RECORDED_PATCH,
    SOURCE_COMMIT_TAG,
    TABLE_TAG,
)
from truefit.tracking.provenance import read_environment, read_workspace
from truefit.tracking.run import Origin

RECORDED_FILES = ("params.yaml", "dvc.yaml", "dvc.lock")


def read_origin(
    params: Params, train: Mapping[str, Any], engine: str, table: Table, device: torch.device, largest: int
) -> Origin:
    """Return all that a run starts from: every param, the engine chosen, the dataset, the code and the environment.

    `train` holds the settings of that section as they were checked.

    The current folder is that of params.yaml. Uncommitted files of more than `largest` bytes are named only.
    """
    workspace, environment = read_workspace(largest), read_environment(device)
    files = {f"{RECORD}/{name}": Path(name).read_bytes() for name in RECORDED_FILES if Path(name).exists()}
    patch = {RECORDED_PATCH: workspace.patch} if workspace.dirty else {}
    commit = {COMMIT_TAG: workspace.commit, SOURCE_COMMIT_TAG: workspace.commit}
    if workspace.omitted:
        commit[OMITTED_TAG] = ", ".join(workspace.omitted)[:5000]
    code = code_digest(read_code())
    digests = {CSV_TAG: table.csv.sha256, TABLE_TAG: table.digest, CODE_TAG: code}
    return Origin(
        params=flatten({**params.values, "train": train}),
        tags={ENGINE_TAG: engine, **digests, **commit, DIRTY_TAG: str(workspace.dirty).lower(), **environment},
        table=table,
        artifacts={**files, **patch, RECORDED_ENVIRONMENT: json.dumps(environment, indent=2).encode()},
    )
