"""What a user can cause to go wrong, each as one line of text.

Reads and writes nothing. Guarantees that a stage ended by a TruefitError prints that line and exits with status 2.

    TruefitError
    ├── SettingsError    params.yaml: a key, a value, a combination
    ├── TableError       a CSV, or the table prepared from one
    ├── DeviceError      a device that is not there
    ├── TrainingError    a training that cannot go on
    ├── ModelError       a saved model that cannot be read
    ├── ProvenanceError  a workspace whose origin cannot be recorded
    └── TrackingError    an MLflow store that does not answer
"""

import sys
from collections.abc import Callable


class TruefitError(Exception):
    """Something that the user can put right; its text is one line that names the place."""


class SettingsError(TruefitError):
    """params.yaml holds something that cannot be used: file, key, what was found and what is allowed."""


class TableError(TruefitError):
    """A CSV or a prepared table is unusable: file, line and column, what was found and what is allowed."""


class DeviceError(TruefitError):
    """The device asked for is not on this machine: what was found and which there are."""


class TrainingError(TruefitError):
    """The training cannot go on: epoch, batch and what to try."""


class ModelError(TruefitError):
    """A saved model cannot be read: file and reason."""


class ProvenanceError(TruefitError):
    """The workspace's commit or changes cannot be read."""


class TrackingError(TruefitError):
    """The MLflow store cannot be used: its address and reason."""


def run(main: Callable[[], None]) -> int:
    """Run a stage's `main` and return its exit status: 0, or 2 after printing one line to stderr.

    The line is that of a TruefitError, or of a file or folder that the operating system refuses to read or write.
    """
    try:
        main()
    except TruefitError as error:
        line = str(error)
    except OSError as error:
        line = f"{error.filename}: {error.strerror or 'failed'}" if error.filename else str(error)
    else:
        return 0
    print("error:", " ".join(line.splitlines()), file=sys.stderr)
    return 2
