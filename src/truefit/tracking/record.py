"""One digest over all that lies in a run's folder record/: what the run started from."""

import hashlib
import json
from collections.abc import Mapping

from truefit.tracking.names import RECORD


def record_digest(files: Mapping[str, bytes]) -> str:
    """Return one SHA-256, in hexadecimal, of the files below record/ among these artifacts: their paths and contents.

    Paths are those in the run, with "/"; the order of `files` does not matter, nor does what lies elsewhere in the run.

    >>> one = record_digest({"record/a": b"1", "record/b": b"2"})
    >>> one == record_digest({"record/b": b"2", "record/a": b"1", "figures/a.png": b"3"})
    True
    >>> one == record_digest({"record/a": b"1"})
    False
    """
    below = sorted(path for path in files if path.startswith(f"{RECORD}/"))
    return hashlib.sha256(json.dumps([(path, hashlib.sha256(files[path]).hexdigest()) for path in below]).encode()).hexdigest()
