"""Addresses of MLflow stores: one spelling for each store, and what kind it is."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from truefit.core.errors import TrackingError

# MLflow's client speaks to these itself, so that it also writes the artifacts itself.
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_FORM = "user:password@host:port/database, with %40 for an @ in the password, and so on"
_SQLITE_FILE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?!:memory:)(?P<path>[^?]+)(?P<query>.*)", re.DOTALL)


def normalised(uri: str, here: Path) -> str:
    """Return the address as it is compared and used: no slash at a server's end, a path in full, from the folder `here`.

    >>> normalised("HTTP://me:Secret@Example.org:5000/", Path("/work")), normalised("sqlite:///a/../mlflow.db", Path("/work"))
    ('http://me:Secret@example.org:5000', 'sqlite:////work/mlflow.db')

    Raises TrackingError, which holds nothing of it, where an address of another machine has a sign that should be encoded: in
    messages, also those of libraries, it could not be told where a password ends.
    """
    uri = uri.strip()
    if found := _SQLITE_FILE.fullmatch(uri):
        return f"{found['scheme']}{os.path.normpath(here / found['path'])}{found['query']}"
    if ":" not in uri and is_direct(uri):
        return os.path.normpath(here / uri)
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if rest and not scheme.startswith(("file", "sqlite")):
        _refuse_unencoded(uri, scheme)
    if scheme not in ("http", "https"):
        return uri
    authority, slash, path = rest.rstrip("/").partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}://{user}{at}{host.lower()}{slash}{path}"


def _refuse_unencoded(uri: str, scheme: str) -> None:
    if re.search(r"\s", uri) or not uri.isprintable():
        raise TrackingError("MLFLOW_TRACKING_URI: found a blank in it, or a control character, allowed: %20 for a blank")
    if is_direct(uri):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(uri)
        except (ArgumentError, ValueError):
            raise TrackingError(f"MLFLOW_TRACKING_URI: found no address behind {scheme}://, allowed: {_FORM}") from None
        behind = f"{url.host}/{url.database}"
    else:
        behind = re.sub(r"[^/?#]*", "", uri.partition("://")[2], count=1)
    if "@" in behind:
        raise TrackingError("MLFLOW_TRACKING_URI: found an @, a slash, ? or # in its password, allowed: %40, %2F, %3F, %23")
    try:
        known = urlsplit(uri)
        is_whole = is_direct(uri) or (known.hostname is not None and known.port != 0)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise TrackingError(f"MLFLOW_TRACKING_URI: found no address behind {scheme}://, allowed: {_FORM}")


def is_direct(uri: str) -> bool:
    """Say whether the address is that of a database or of a folder, with no server in between.

    >>> [is_direct(uri) for uri in ("postgresql+psycopg://example.org/runs", "./mlruns", "https://example.org", "databricks")]
    [True, True, False, False]
    """
    scheme = re.split(r"[+:]", uri.lower())[0]
    return scheme in (*DATABASES, "file") or (":" not in uri and uri not in ("databricks", "databricks-uc", "uc"))


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database.

    >>> database_file("sqlite:////work/mlflow.db?timeout=20"), database_file("https://example.org")
    (PosixPath('/work/mlflow.db'), None)
    """
    found = _SQLITE_FILE.fullmatch(uri)
    return Path(found["path"]) if found else None
