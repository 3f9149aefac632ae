"""A database opened for MLflow by many processes at once, of which one creates the tables while the others wait."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from truefit.core.files import atomic_path
from truefit.core.terminal import guard_log
from truefit.tracking.address import database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What lasts as long as the connection that asked for it, whichever host that is of; the number and the name are our own.
_LOCKS = {
    "postgresql": "SELECT pg_advisory_lock(5830163197)",
    "mysql": "SELECT GET_LOCK('truefit', 600)",
    "mssql": "EXEC sp_getapplock @Resource = 'truefit', @LockMode = 'Exclusive', @LockOwner = 'Session'",
}


def open_store(uri: str) -> "MlflowClient":
    """Return a client of the store, whose tables are there.

    Raises MlflowException or SQLAlchemyError where it cannot be opened, and ImportError where its driver is not installed.
    """
    from mlflow import MlflowClient

    # These tell of each table that they create, which is no news to anyone, and of errors that are raised all the same.
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    guard_log("mlflow")
    if (file := database_file(uri)) and not file.exists():
        _create(uri, file)
    with _alone(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _create(uri: str, file: Path) -> None:
    """Create an SQLite database that appears with all its tables, so that a kill leaves none that nothing opens any more."""
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            with atomic_path(file) as temporary:
                MlflowClient(uri.replace(str(file), str(temporary))).search_experiments(max_results=1)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep others out of a database on a server; one that is away is told at once, where MLflow would try for minutes."""
    kind = uri.partition(":")[0].partition("+")[0].lower()
    if kind not in _LOCKS:
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(_LOCKS[kind]))
        yield
