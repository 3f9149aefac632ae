"""How much memory a piece of work takes, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"

# VmHWM, since ru_maxrss begins with the peak of the process that started this one.
MEASURE = """
import re
from pathlib import Path
{work}
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak_memory(work: str, folder: Path) -> int:
    """Return the peak of the resident memory, in MB, of a process that does the work in the folder; it has Path already."""
    command = [sys.executable, "-c", MEASURE.format(work=work)]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)
