"""The parent of a grid's runs, below which MLflow shows them."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from truefit.tracking.names import BASELINE_TAG, GRID_KEY_TAG, GRID_TAG, PARENT_TAG, USER_TAG
from truefit.tracking.records import Header, now

if TYPE_CHECKING:
    from mlflow import MlflowClient


def parent_tags(client: "MlflowClient", experiment: str, header: Header, lock: Path) -> dict[str, str]:
    """Return the tag that makes a run the child of its grid's run, which is created if need be; none without a grid.

    `lock` is the file by which the workers on this machine take turns.
    """
    grid = header.tags.get(GRID_TAG)
    if grid is None or PARENT_TAG in header.tags:
        return {}
    user = header.tags.get(USER_TAG, "")
    # The commit says which repository it is. Two people may try the same from it, each with a grid of their own.
    key = hashlib.sha256(json.dumps([grid, header.tags.get(BASELINE_TAG), user]).encode()).hexdigest()
    with FileLock(lock):
        return {PARENT_TAG: _find(client, experiment, key) or _create(client, experiment, key, {USER_TAG: user}, grid)}


def _find(client: "MlflowClient", experiment: str, key: str) -> str | None:
    """Return the first of the runs with that key, since other machines may have created one in the same moment."""
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    found = client.search_runs([experiment], f"tags.`{GRID_KEY_TAG}` = '{key}'", max_results=1, order_by=order)
    if not found:
        return None
    if found[0].info.status != "FINISHED":  # its creation was cut off
        client.set_terminated(found[0].info.run_id)
    return str(found[0].info.run_id)


def _create(client: "MlflowClient", experiment: str, key: str, tags: dict[str, str], name: str) -> str:
    created = client.create_run(experiment, now(), {GRID_KEY_TAG: key, **tags}, name).info.run_id
    first = _find(client, experiment, key) or created
    if first != created:
        client.delete_run(created)
    return str(first)
