"""Where a result comes from: the commit, what was changed since, and the environment.

Reads the git repository of the current folder and the installed packages; writes nothing there: neither the working tree
nor the index changes.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from truefit.errors import ProvenanceError

PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "mlflow", "dvc")


@dataclass(frozen=True)
class Workspace:
    """The code that ran: the commit checked out, and a patch with all that differs from it.

    The patch holds new files too, but for those under data/.
    """

    commit: str
    patch: bytes

    @property
    def dirty(self) -> bool:
        """Whether anything differs from the commit."""
        return bool(self.patch)


def read_workspace() -> Workspace:
    """Return the state of the git repository that the current folder is in.

    Raises ProvenanceError where there is no repository or no commit in it.
    """
    commit = _git("rev-parse", "--verify", "HEAD").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the index, so that files which git does not know yet can be added to it without a trace. Not those of
        # data/: a patch would grow with them, and the run has the digest of the CSV that it read.
        index = Path(folder, "index")
        shutil.copyfile(_git("rev-parse", "--path-format=absolute", "--git-path", "index").decode().strip(), index)
        _git("add", "--intent-to-add", ":/", ":(top,exclude)data", index=index)
        patch = _git("diff", "--binary", "--no-ext-diff", "--no-color", "HEAD", index=index)
    return Workspace(commit, patch)


def read_environment(device: torch.device) -> dict[str, str]:
    """Return what may change a result's bits: versions, the CPU's vector instructions, threads and the device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": str(device),
        "device_name": name,
    }


def _git(*arguments: str, index: Path | None = None) -> bytes:
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, env=environment).stdout
    except FileNotFoundError:
        raise ProvenanceError("git: not found; every run records the commit that it ran on") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.decode(errors="replace").strip() or "failed").splitlines()[0]
        advice = ": `git init` and commit" if arguments[0] == "rev-parse" else ""
        raise ProvenanceError(f"git {arguments[0]}: {reason}; every run records its commit{advice}") from None
