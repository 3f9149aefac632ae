"""Where a result comes from: params, data, the commit, what was changed since, the code, and the environment.

Neither the working tree nor the index changes.
"""

import json
import os
import platform
import shutil
import tempfile
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
from truefit.data.columns.number import Number
from truefit.data.table import Table
from truefit.tracking import names
from truefit.tracking.git import git
from truefit.tracking.records import Values

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "mlflow", "dvc")
ENVIRONMENT = ("python", *PACKAGES, "platform", "cpu_capability", "threads", "device", "device_name")
LARGEST_SCHEMA = 1_000_000  # characters of a dataset's columns; MLflow takes 1,048,575 with what is around them
# Everything below the repository's root, but for where secrets may be: DVC keeps the addresses of its remotes here.
_RECORDED = (":/", ":(top,exclude,glob)**/.dvc/config*", ":(top,exclude,glob)**/.env*")
# Whatever the user's own settings of git say of how a diff looks.
_DIFF = (
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--src-prefix=a/", "--dst-prefix=b/"),
    "--submodule=short",
)


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

    Uncommitted files of more than `largest` bytes are named only. Raises TruefitError where there is no commit.
    """
    workspace, environment = read_workspace(largest), read_environment(device)
    artifacts = {f"{names.RECORD}/{name}": Path(name).read_bytes() for name in names.RECORDED_FILES if Path(name).exists()}
    artifacts[names.RECORDED_ENVIRONMENT] = json.dumps(environment, indent=2).encode()
    tags = {
        names.ENGINE_TAG: engine,
        names.CSV_TAG: table.csv.sha256,
        names.TABLE_TAG: table.digest,
        names.CODE_TAG: code_digest(read_code()),  # of the folder that this module was imported from
        names.COMMIT_TAG: workspace.commit,
        names.SOURCE_COMMIT_TAG: workspace.commit,
        names.DIRTY_TAG: str(workspace.dirty).lower(),
        **environment,
    }
    if workspace.dirty:
        artifacts[names.RECORDED_PATCH] = workspace.patch
    if workspace.omitted:
        tags[names.OMITTED_TAG] = ", ".join(workspace.omitted)[:5000]
    return Origin(flatten({**params.values, "train": train}), tags, table, artifacts)


def code_in_use() -> dict[str, str]:
    """Return the digests of the code and of params.yaml."""
    return read_code() | ({str(PARAMS): sha256(PARAMS)} if PARAMS.is_file() else {})


def changed_since(before: Mapping[str, str]) -> list[str]:
    """Return the files whose digests are no longer those of `code_in_use` before."""
    return sorted({name for name, _ in before.items() ^ code_in_use().items()})


@dataclass(frozen=True)
class Workspace:
    """The commit checked out, and a patch with all that differs from it; `omitted` names the files too large for that."""

    commit: str
    patch: bytes
    omitted: tuple[str, ...] = ()

    @property
    def dirty(self) -> bool:
        """Whether anything differs from the commit."""
        return bool(self.patch or self.omitted)


def read_workspace(largest: int) -> Workspace:
    """Return the state of the git repository that the current folder is in, with files of up to `largest` bytes.

    Raises TruefitError where there is no repository or no commit in it.
    """
    advice = "; every run records its commit: `git init` and commit"
    commit = git("rev-parse", "--verify", "HEAD", advice=advice).stdout.decode().strip()
    top = _path("--show-toplevel")
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the index, so that files which git does not know yet can be added to it without a trace. Not those of
        # the project's data/: a patch would grow with them, and the run has the digest of the CSV that it read.
        index = Path(folder, "index")
        # With its time: by that git knows which files, of the same size and second, it must read to see whether they changed.
        shutil.copy2(_path("--path-format=absolute", "--git-path", "index"), index)
        omitted = _add_new_files(top, index, largest)
        omitted += [name for name, size in _changed(top, index) if size > largest]
        places = [*_RECORDED, *(f":(top,exclude,literal){name}" for name in omitted)]
        patch = git(*_DIFF, "--binary", "--unified=3", "HEAD", "--", *places, index=index).stdout
    return Workspace(commit, patch, tuple(omitted))


def _path(*asked: str) -> Path:
    return Path(os.fsdecode(git("rev-parse", *asked).stdout).rstrip("\n"))


def _add_new_files(top: Path, index: Path, largest: int) -> list[str]:
    """Add to the index the files that git does not know, but for those over `largest` bytes, which it returns."""
    listed = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", *_RECORDED, ":(exclude)data", index=index)
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0")[:-1]]
    # A repository of its own inside this one, whose name ends so, counts as too large.
    large = [name for name in names if name.endswith("/") or os.lstat(top / name).st_size > largest]
    small = b"".join(os.fsencode(name) + b"\0" for name in names if name not in set(large))
    adding = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
    git("-C", str(top), "--literal-pathspecs", *adding, index=index, given=small)
    return large


def _changed(top: Path, index: Path) -> list[tuple[str, int]]:
    """Return the files that differ from the commit, each with its bytes, before or after: whichever are more."""
    raw = git(*_DIFF, "--raw", "-z", "--no-renames", "--no-abbrev", "HEAD", "--", *_RECORDED, index=index)
    fields = os.fsdecode(raw.stdout).split("\0")[:-1]
    names, former = fields[1::2], [entry.split()[2] for entry in fields[::2]]
    asked = "".join(f"{blob}\n" for blob in former).encode()
    sizes = git("cat-file", "--batch-check=%(objectsize)", given=asked).stdout.decode().splitlines()
    before = [int(size) if size.isdigit() else 0 for size in sizes]  # a new file is `missing` there
    after = [os.lstat(top / name).st_size if os.path.lexists(top / name) else 0 for name in names]
    return list(zip(names, map(max, before, after), strict=True))


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
