"""Bring what DVC tracks in a project, from the cache or the remotes that another folder's DVC is set to use: `bring.py` alone.

A process of its own: what a remote's library raises, prints and leaves running is no more than a line to the rerun.
"""

import sys
from pathlib import Path
from types import TracebackType

from dvc.api import DVCFileSystem
from dvc.config import Config
from dvc.repo import Repo


def bring(project: str, user: str, name: str) -> None:
    """Write the file or folder `name` of a project into it, found with the settings of DVC in the folder `user`."""
    settings = Config(f"{user}/.dvc")
    cache = settings["cache"]
    cache["dir"] = cache.get("dir") or f"{user}/.dvc/cache"
    cache["type"] = ["reflink", "copy"]  # through a link, what the pipeline does to its file would reach the user's cache
    # With the slash it goes into that folder under its own name, whether it is there or not.
    DVCFileSystem(Repo(project, config=settings)).get(f"/{name}", f"{Path(project, name).parent}/", recursive=True)


def complain(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """Write a line in place of a traceback."""
    print("ERROR:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)


if __name__ == "__main__":
    sys.excepthook = complain
    bring(*sys.argv[1:])
