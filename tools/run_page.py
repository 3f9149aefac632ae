"""Runs the Python blocks of a page as one session, and gives the page as it comes out on this machine.

Reads a .md file and what its blocks read; prints the page, or with --write writes it. Guarantees that each ```python block is
followed by a ```text block with what it printed, where it printed something, and that one which names an object behind
`python`, as MODULE:NAME, is the object's source, verbatim, and is not run. A block that fails ends the run with its traceback.

Usage: python tools/run_page.py PAGE [--write]
"""

import argparse
import inspect
import io
import pkgutil
import re
import textwrap
from code import InteractiveConsole
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# A block, and the block of output that may follow it.
BLOCK = re.compile(r"^```python(?: (?P<name>\S+))?\n(?P<code>.*?)^```\n(?:\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Run the page named on the command line, and print or write what comes out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="a .md file, such as docs/tutorial.md")
    parser.add_argument("--write", action="store_true", help="write the page instead of printing it")
    arguments = parser.parse_args()
    page: Path = arguments.page
    rendered = render(page.read_text(), page)
    page.write_text(rendered) if arguments.write else print(rendered, end="")


def render(text: str, page: Path) -> str:
    """Return the page's text with each output and each source as it is now; raises what a block raises."""
    session = Session()

    def renew(block: re.Match[str]) -> str:
        if block["name"]:
            source = inspect.getsource(pkgutil.resolve_name(block["name"]))
            return f"```python {block['name']}\n{textwrap.dedent(source)}```\n"
        printed = session.run(block["code"], page, text.count("\n", 0, block.start("code")))
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{printed}```\n" if printed else "")

    return BLOCK.sub(renew, text)


class Session(InteractiveConsole):
    """Takes code as `python` does when it is typed, line by line; an error in it is raised here."""

    def run(self, code: str, page: Path, line: int) -> str:
        """Run a block that follows the page's line of that number; return what it printed."""
        with redirect_stdout(io.StringIO()) as printed:
            for number, typed in enumerate([*code.splitlines(), ""], line + 1):  # an empty line ends what is indented
                self.filename = f"{page}:{number}"
                unfinished = self.push(typed)
        if unfinished:
            raise SyntaxError(f"{self.filename}: the block ends in the middle of a statement")
        return printed.getvalue()

    def showtraceback(self) -> None:
        """Raise what the code raised."""
        raise

    def showsyntaxerror(self, *_: Any, **__: Any) -> None:
        """Raise what the code raised."""
        raise


if __name__ == "__main__":
    main()
