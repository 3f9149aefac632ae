"""Stage generate: params.yaml `generate` -> a synthetic CSV."""

if __name__ == "__main__":  # before the imports that take seconds
    from truefit.core.beginning import end_at_signals

    end_at_signals()

import argparse
import sys
from pathlib import Path

from truefit.core import errors
from truefit.core.config import Params
from truefit.data.generating import GenerateSettings
from truefit.ingest.synthetic import write_csv


def main() -> None:
    """Draw the data that the settings describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path, help="the CSV to write, such as data/synthetic.csv")
    arguments = parser.parse_args()
    write_csv(Params().section("generate", GenerateSettings), arguments.csv)


if __name__ == "__main__":
    sys.exit(errors.run(main))
