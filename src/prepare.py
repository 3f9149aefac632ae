"""Stage prepare: the CSV at `prepare.csv` -> a validated, split table.  Usage: python src/prepare.py data/prepared"""

import sys
from pathlib import Path

from truefit import errors
from truefit.config import load_settings
from truefit.ingest import PrepareSettings, write_table


def main() -> None:
    """Prepare the table and say what is in it."""
    (folder,) = sys.argv[1:]
    settings = load_settings("prepare", PrepareSettings)
    table = write_table(settings, Path(folder))
    rows = ", ".join(f"{count} {split}" for split, count in table.rows.items())
    print(f"{settings.csv}: {len(table.features)} features, target {table.target!r}; rows: {rows}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
