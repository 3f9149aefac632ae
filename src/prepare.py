"""Stage prepare: the CSV at `prepare.csv` -> a validated, split table."""

if __name__ == "__main__":  # before the imports that take seconds
    from truefit.core.beginning import end_at_signals

    end_at_signals()

import argparse
import sys
from pathlib import Path

from truefit.core import errors
from truefit.core.config import Params
from truefit.core.launch import launch_here
from truefit.core.signals import stoppable
from truefit.core.terminal import say
from truefit.core.text import one_line
from truefit.ingest.prepare import PrepareSettings, write_table


def main() -> None:
    """Prepare the table and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="the folder to write, such as data/prepared")
    arguments = parser.parse_args()
    settings = Params().section("prepare", PrepareSettings)
    with stoppable("before the table was written"):
        table, unnamed, dropped, missing = write_table(settings, arguments.table, launch_here())
    rows = ", ".join(f"{count} {split}" for split, count in table.rows.items())
    left_out = [f"{unnamed} {'column' if unnamed == 1 else 'columns'} without a name"] if unnamed else []
    if dropped:
        gaps = ", ".join(f"{count} in '{one_line(name)}'" for name, count in missing.items())
        left_out.append(f"{dropped} {'row' if dropped == 1 else 'rows'} with missing values ({gaps})")
    remark = f"; left out: {', '.join(left_out)}" if left_out else ""
    columns = f"{len(table.features)} features, target '{one_line(table.target)}'"
    columns += f", weight '{one_line(table.weight.name)}'" if table.weight is not None else ""
    say(f"{settings.csv}: {columns}; rows: {rows}{remark}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
