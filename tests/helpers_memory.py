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

# The same of each piece of work in a fork of a process that has imported what all need; a fork's peak begins with what it has.
MEASURE_EACH = """
import os, re
from pathlib import Path
{imports}
for work in {works!r}:
    if (child := os.fork()) == 0:
        exec(work)
        print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def peak_memory(work: str, folder: Path) -> int:
    """Return the peak of the resident memory, in MB, of a process that does the work in the folder; it has Path already."""
    return int(_printed(MEASURE.format(work=work), folder))


def peak_memories(imports: str, works: list[str], folder: Path) -> list[int]:
    """Return the peak of each of several such processes, which share their imports."""
    return [int(line) for line in _printed(MEASURE_EACH.format(imports=imports, works=works), folder).splitlines()]


def _printed(code: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
