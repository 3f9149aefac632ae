"""Where a result comes from: params, data, the commit, what was changed since, the code, and the environment."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from truefit.core.code import code_digest, read_code
from truefit.core.config import PARAMS, Params, flatten
from truefit.core.files import sha256
from truefit.core.terminal import say
from truefit.data.columns.number import Number
from truefit.data.table import Table
from truefit.tracking import names
from truefit.tracking.commits import Commits, read_commits
from truefit.tracking.connection import repository_root
from truefit.tracking.git import is_shallow, root_commit
from truefit.tracking.record import record_digest
from truefit.tracking.records import Values
from truefit.tracking.secrets import find_secret
from truefit.tracking.workspace import LeftOut, Workspace, read_workspace, summary

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "mlflow", "dvc")
ENVIRONMENT = ("python", *PACKAGES, "platform", "cpu_capability", "threads", "device", "device_name")
LARGEST_SCHEMA = 1_000_000  # characters of a dataset's columns; MLflow takes 1,048,575 with what is around them


@dataclass(frozen=True)
class Origin:
    """All that a training starts from; artifacts go by their paths in the run."""

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    table: Table
    artifacts: Mapping[str, bytes]

    def records(self) -> list[Values]:
        """Return all but the artifacts as records of a journal."""
        params = {key: param_text(value) for key, value in self.params.items()}
        kinds = [*self.table.columns, Number(name=self.table.target)]
        columns = [{"type": kind.mlflow_type, "name": kind.name, "required": kind.fill is None} for kind in kinds]
        listed = sum(size <= LARGEST_SCHEMA for size in accumulate(len(json.dumps(column)) + 2 for column in columns))
        dataset = {
            "name": Path(self.table.csv.path).name,
            "digest": self.table.csv.sha256[:36],  # as much as MLflow takes
            "source_type": "local",
            "source": json.dumps({"uri": self.table.csv.path}),
            "schema": json.dumps({"mlflow_colspec": columns[:listed]}),
            "profile": json.dumps({"num_rows": sum(self.table.rows.values()), **self.table.rows}),
        }
        omitted = {names.OMITTED_COLUMNS_TAG: str(len(columns) - listed)} if listed < len(columns) else {}
        tags = Values(kind="tags", values={**self.tags, **omitted})
        return [Values(kind="params", values=params), Values(kind="dataset", values=dataset), tags]


def param_text(value: Any) -> str:
    """Return the text that MLflow has of a param: as JSON spells it, but for text, which stays.

    >>> [param_text(value) for value in (0.1, True, None, [1, 2], "adam")]
    ['0.1', 'true', 'null', '[1, 2]', 'adam']
    """
    return value if isinstance(value, str) else json.dumps(value)


def read_origin(
    params: Params, train: Mapping[str, Any], engine: str, table: Table, device: torch.device, largest: int
) -> Origin:
    """Return what a run starts from, in the folder of params.yaml; `train` holds the settings of that section as checked.

    Uncommitted files are recorded up to `largest` bytes, each and together; so are commits that the remote does not have.
    Raises TruefitError where there is no commit.
    """
    environment, workspace = read_environment(device), read_workspace(largest)
    artifacts, withheld = _recorded_files()
    artifacts[names.RECORDED_ENVIRONMENT] = json.dumps(environment, indent=2).encode()
    if workspace.dirty:
        artifacts[names.RECORDED_PATCH] = workspace.patch
    if workspace.submodules:
        artifacts[names.RECORDED_SUBMODULES] = json.dumps(workspace.submodules, indent=2).encode()
    commits = read_commits(workspace.commit, largest)
    if commits.bundle:
        artifacts[names.RECORDED_BUNDLE] = commits.bundle
    git_tags = {**_workspace_tags(workspace, withheld), **_commits_tags(commits)}
    _warn(git_tags)
    tags = {
        names.ENGINE_TAG: engine,
        names.CSV_TAG: table.csv.sha256,
        names.TABLE_TAG: table.digest,
        names.CODE_TAG: code_digest(read_code()),  # of the folder that this module was imported from
        names.RECORD_TAG: record_digest(artifacts),
        **git_tags,
        **environment,
    }
    return Origin(flatten({**params.values, "train": train}), tags, table, artifacts)


def _recorded_files() -> tuple[dict[str, bytes], list[LeftOut]]:
    """Return the project's own files that each run has as they are, but for those that seem to hold a secret."""
    artifacts, withheld = {}, []
    for name in filter(os.path.exists, names.RECORDED_FILES):
        content = Path(name).read_bytes()
        if what := find_secret(name, content):
            withheld.append(LeftOut(name, f"{what} may be in it", needed=True))
        else:
            artifacts[f"{names.RECORD}/{name}"] = content
    return artifacts, withheld


def _workspace_tags(workspace: Workspace, withheld: list[LeftOut]) -> dict[str, str]:
    known = {file.name for file in withheld}
    left_out = withheld + [file for file in workspace.left_out if file.name not in known]
    tags = {
        names.COMMIT_TAG: workspace.commit,
        names.SOURCE_COMMIT_TAG: workspace.commit,
        names.ROOT_TAG: "" if is_shallow(repository_root()) else root_commit(),
        names.DIRTY_TAG: str(workspace.dirty).lower(),
        names.OMITTED_TAG: summary(left_out),
        names.INCOMPLETE_TAG: summary(file for file in left_out if file.needed),
    }
    return {tag: value for tag, value in tags.items() if value}


def _commits_tags(commits: Commits) -> dict[str, str]:
    tags = {names.REMOTE_TAG: commits.remote, names.BASE_TAG: commits.base, names.UNBUNDLED_TAG: commits.unbundled}
    return {tag: value for tag, value in tags.items() if value}


def _warn(tags: Mapping[str, str]) -> None:
    """Say at the start what will be missing, while it can still be committed, cleaned or pushed."""
    if names.ROOT_TAG not in tags:
        where = "warning: this is a shallow clone: in a shared store, `truefit rerun` takes its runs for nobody's, and needs"
        say(f"{where} --trust; `git fetch --unshallow` before a training makes that run yours", error=True)
    if missing := tags.get(names.INCOMPLETE_TAG):
        say(f"warning: not in the run's record: {missing}; without that `truefit rerun` cannot judge it", error=True)
    if missing := tags.get(names.UNBUNDLED_TAG):
        where = tags[names.REMOTE_TAG]
        text = f"warning: commits that {where} lacks are not in the run's record: {missing}; `git push` shows them to others"
        say(text, error=True)


def code_in_use() -> dict[str, str]:
    """Return the digests of the code and of params.yaml."""
    return read_code() | ({str(PARAMS): sha256(PARAMS)} if PARAMS.is_file() else {})


def changed_since(before: Mapping[str, str]) -> list[str]:
    """Return the files whose digests are no longer those of `code_in_use` before."""
    return sorted({name for name, _ in before.items() ^ code_in_use().items()})


def read_environment(device: torch.device) -> dict[str, str]:
    """Return what may change a result's bits: versions, the CPU's vector instructions, threads and the device."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
