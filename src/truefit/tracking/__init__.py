"""MLflow: one run for every executed training, completed by its evaluation. The only package that imports mlflow.

A run (run.py) is written to its journal, which is sent (sending.py) to the store (connection.py) while it grows (store.py).
"""

from truefit.tracking.connection import VIEW_NAME, repository_root, shown
from truefit.tracking.run import (
    CHANGED_TAG,
    DIGEST_TAG,
    NOTE_TAG,
    OMITTED_TAG,
    RANGE_TAG,
    RERUN_KEY_TAG,
    RERUN_TAG,
    Origin,
    Run,
    TrackSettings,
    spell,
)
from truefit.tracking.store import Store

__all__ = [
    "CHANGED_TAG",
    "DIGEST_TAG",
    "NOTE_TAG",
    "OMITTED_TAG",
    "RANGE_TAG",
    "RERUN_KEY_TAG",
    "RERUN_TAG",
    "VIEW_NAME",
    "Origin",
    "Run",
    "Store",
    "TrackSettings",
    "repository_root",
    "shown",
    "spell",
]
