"""Holds the documents to the tree: links, make targets, paths, settings, stages, and the docstrings of modules.

Reads every .md file, the Makefile, params.yaml, dvc.yaml and src; writes nothing. Prints each fault as `file:line: text`
and exits with status 1 where there is one.  Usage: python tools/check_docs.py [ROOT]
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from truefit.core.config import flatten

LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`]+)`")
TARGET = re.compile(r"(?:^|[;&|] *)make ([a-z]+)")
KEY = re.compile(r"(?<![\w./-])(?:generate|prepare|train|evaluate|track)(?:\.[a-z_]+)+")
PATH = re.compile(r"\.?\w[\w.-]*/[\w./-]*|[\w.-]+\.(?:py|md|ya?ml|toml|lock|json|csv|png|npy|pt|db)")


def main() -> int:
    """Check the tree at the path given, or this one, and return the exit status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    documents, modules = find(root, ".md"), find(root / "src", ".py")
    faults = [f"{path.relative_to(root)}:{fault}" for path in documents for fault in document_faults(root, path)]
    faults += [f"README.md:{fault}" for fault in readme_faults(root)]
    undocumented = [path for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]
    faults += [f"{path.relative_to(root)}:1: found no docstring at the top" for path in undocumented]
    print("\n".join(faults) or f"docs: {len(documents)} documents and {len(modules)} modules, no faults")
    return 1 if faults else 0


def find(folder: Path, suffix: str) -> list[Path]:
    """Return every file with the suffix, those in hidden folders and in the MLflow store left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "mlartifacts")))
        found += [Path(place, name) for name in sorted(files) if name.endswith(suffix)]
    return found


def document_faults(root: Path, document: Path) -> Iterator[str]:
    """Give the faults of one document, as `line: text`."""
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE)
    params = YAML(typ="safe").load(root / "params.yaml")
    keys = [*flatten(params), *(f"{section}.{key}" for section, values in params.items() for key in values)]
    # What a run writes is not there on a clean checkout, but the code that writes it, or .gitignore, names it.
    written = "".join(path.read_text() for path in [*find(root / "src", ".py"), root / "dvc.yaml", root / ".gitignore"])
    in_block = False
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_block = not in_block
            continue
        code = [line] if in_block else SPAN.findall(line)
        for link in [] if in_block else LINK.findall(SPAN.sub("", line)):
            if not re.match(r"[a-z]+:", link) and not leads_somewhere(document, link):
                yield f"{number}: the link {link} leads nowhere"
        for target in [name for text in code for name in TARGET.findall(text)]:
            if target not in targets:
                yield f"{number}: the Makefile has no target {target}"
        for key in KEY.findall(line):
            if key not in keys and not key.endswith((".py", ".npy")):
                yield f"{number}: params.yaml has no key {key}"
        for name in [] if in_block else [text for text in code if PATH.fullmatch(text) and text not in keys]:
            there = any((folder / name).exists() for folder in (root, root / "src/truefit", document.parent))
            if not there and (name.endswith((".py", ".md")) or Path(name).name not in written):
                yield f"{number}: there is no path {name}"


def leads_somewhere(document: Path, link: str) -> bool:
    """Tell whether a link leads to a file and, with a #, to a heading in it."""
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not anchor or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ +(.+?) *$", target.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def readme_faults(root: Path) -> Iterator[str]:
    """Give the stages that the README does not name, and where its tree differs from the repository."""
    text = (root / "README.md").read_text()
    for stage in YAML(typ="safe").load(root / "dvc.yaml")["stages"]:
        if not re.search(rf"\b{stage}\b", text):
            yield f"1: found nothing about the stage {stage}"
    tree = dict(tree_paths(text))
    for name, number in tree.items():
        if not (root / name).exists():
            yield f"{number}: the tree names {name}, which is not there"
    for path in find(root / "src", ".py"):
        if str(path.relative_to(root)) not in tree:
            yield f"{min(tree.values(), default=1)}: the tree lacks {path.relative_to(root)}"


def tree_paths(text: str) -> Iterator[tuple[str, int]]:
    """Give path and line of each name in the annotated tree: the block that has src/ on a line of its own.

    Two blanks of indent lie between a folder and what it holds; several names may share a line; # begins a note.
    """
    blocks = re.finditer(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    start, tree = next(((found.start(1), found[1]) for found in blocks if "\nsrc/\n" in found[1]), (0, ""))
    folders: list[str] = []
    for number, line in enumerate(tree.splitlines(), text.count("\n", 0, start) + 1):
        names = line.partition("#")[0].rstrip()
        del folders[(len(names) - len(names.lstrip())) // 2 :]
        for name in names.split():
            yield "".join([*folders, name]), number
        if names.endswith("/"):
            folders.append(names.strip())


if __name__ == "__main__":
    sys.exit(main())
