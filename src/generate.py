"""Stage generate: params.yaml `generate` -> a synthetic CSV.  Usage: python src/generate.py data/synthetic.csv"""

import sys
from pathlib import Path

from truefit import errors
from truefit.config import load_settings
from truefit.synthetic import GenerateSettings, write_csv


def main() -> None:
    """Draw the data that the settings describe."""
    (path,) = sys.argv[1:]
    settings = load_settings("generate", GenerateSettings)
    write_csv(settings, Path(path))


if __name__ == "__main__":
    sys.exit(errors.run(main))
