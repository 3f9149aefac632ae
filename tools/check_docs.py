"""Holds the documents to the tree: make targets, paths, settings, stages and rooms; and modules to having a docstring.

Links are held by Sphinx: see docs/conf.py.  Usage: python tools/check_docs.py [ROOT]
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from truefit.core.config import flatten

SPAN = re.compile(r"`([^`]+)`")
TARGET = re.compile(r"(?:^|[;&|] *)make ([a-z]+)")
KEY = re.compile(r"(?<![\w./-])(?:generate|prepare|train|evaluate|track)(?:\.[a-z_]+)+")
PATH = re.compile(r"\.?\w[\w.-]*/[\w./-]*|[\w.-]+\.(?:py|md|ya?ml|toml|lock|json|csv|png|npy|pt|db)")


def main() -> int:
    """Check the tree at the path given, or this one; print each fault as `file:line: text`, and return the exit status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    documents, modules = find(root, ".md"), find(root / "src", ".py")
    faults = [f"{path.relative_to(root)}:{fault}" for path in documents for fault in document_faults(root, path)]
    faults += unnamed_parts(root)
    undocumented = [path for path in modules if not ast.get_docstring(ast.parse(path.read_text()))]
    faults += [f"{path.relative_to(root)}:1: found no docstring at the top" for path in undocumented]
    print("\n".join(faults) or f"docs: {len(documents)} documents and {len(modules)} modules, no faults")
    return 1 if faults else 0


def find(folder: Path, suffix: str) -> list[Path]:
    """Return every file with the suffix, those in hidden folders, in the site and in the MLflow store left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_build", "mlartifacts")))
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


def unnamed_parts(root: Path) -> Iterator[str]:
    """Give the stages that docs/pipeline.md does not name, and the rooms that docs/architecture.md does not."""
    pipeline, architecture = ((root / f"docs/{name}.md").read_text() for name in ("pipeline", "architecture"))
    for stage in YAML(typ="safe").load(root / "dvc.yaml")["stages"]:
        if not re.search(rf"\b{stage}\b", pipeline):
            yield f"docs/pipeline.md:1: found nothing about the stage {stage}"
    for room in sorted(path.parent.name for path in (root / "src/truefit").glob("*/__init__.py")):
        if f"| `{room}/` |" not in architecture:
            yield f"docs/architecture.md:1: found no row for the room {room}"


if __name__ == "__main__":
    sys.exit(main())
