"""`truefit inspect`: what was found in a CSV and the settings for it, as text, as JSON, and in params.yaml."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from truefit.core.config import PARAMS, Params
from truefit.core.errors import SettingsError
from truefit.core.files import write_bytes
from truefit.core.params_text import block, flow, with_value, without
from truefit.core.text import one_line
from truefit.ingest.column_kinds import Column
from truefit.ingest.column_statistics import frequent, least_and_greatest
from truefit.ingest.inspection import Inspection
from truefit.ingest.part_files import ALL
from truefit.ingest.prepare import PrepareSettings
from truefit.ingest.recommend import Advice
from truefit.training.settings import TrainSettings

ROLES = ("prepare.split.column", "prepare.split.group", "prepare.split.order", "prepare.weight")  # keys that name columns
SHOWN = 3  # of a column's most frequent values
LONGEST_VALUE = 20  # characters of one
WHY_COLUMN = 42  # where the reasons begin, behind settings that are shorter
WHOLE = ("train.schedule",)  # parts of which no other keys may stay
PLAIN_ENGINES = ("numpy", "autograd")  # which train nothing but a line by plain sgd

_NOTHING = object()  # stands for a key that is not there

Changes = list[tuple[str, Any, Any]]


def as_lines(found: Inspection, advice: list[Advice], remarks: list[str]) -> list[str]:
    """Return the report as lines: one a column, then the settings as YAML with the reasons; and `remarks` on params.yaml."""
    rows = [("column", "kind", "missing", "distinct", "values", "remarks"), *map(_cells, found.columns)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = f"{found.path}: {found.rows:,} rows, {len(found.columns):,} columns"
    more = ["", *(f"{PARAMS}: {remark}" for remark in remarks)] if remarks else []
    return [title, "", *lines, "", "# The settings for it, and why", *_yaml(advice), *more]


def as_json(found: Inspection, advice: list[Advice], remarks: list[str], changes: Changes | None) -> dict[str, Any]:
    """Return the same report as values that JSON has, with what was changed in params.yaml if anything was to be."""
    settings: dict[str, Any] = {}
    for key, value, _ in advice:
        *parts, last = key.split(".")
        part = settings
        for name in parts:
            part = part.setdefault(name, {})
        part[last] = value
    return {
        "file": str(found.path),
        "rows": found.rows,
        "target": found.target.name,
        "columns": [_column(column) for column in found.columns],
        "settings": settings,
        "why": {key: why for key, _, why in advice},
        "remarks": remarks,
        "changed": changes and change_lines(changes),
    }


def roles(params: dict[str, Any]) -> dict[str, str]:
    """Return the columns that params.yaml uses for something else than features, and for what."""
    return {name: f"it is {key}" for key in ROLES if isinstance(name := _get(params, key), str)}


def parts(params: dict[str, Any]) -> str:
    """Return the names of the parts of a folder by params.yaml."""
    names = _get(params, "prepare.parts")
    return names if isinstance(names, str) and names else ALL


def absent(params: dict[str, Any], found: Inspection) -> list[str]:
    """Return for each column that params.yaml uses, and the table lacks, a line with the way out."""
    known = {column.name for column in found.columns} - {""}
    named = [(key, name) for key in ROLES if isinstance(name := _get(params, key), str) and name not in known]
    return [
        f"{key}: found {name!r}, allowed: null, or a column of {found.path}, which has none of that name"
        for key, name in named
    ]


def write_params(path: Path, advice: list[Advice]) -> Changes:
    """Put the settings into params.yaml, whose comments stay; return what changed: key, old value, new value.

    Raises SettingsError, and leaves the file, where it is not there, or its text cannot be changed by the key, or a setting
    that stays does not go with those that are to be written.
    """
    old = Params(path).values
    text = path.read_bytes().decode()
    changes: Changes = []
    try:
        for key, before, after in _changes(old, advice):
            keys = key.split(".")
            text = without(text, keys) if after is _NOTHING else with_value(text, keys, after)
            changes.append((key, before, after))
        _require_written(text, changes)
    except ValueError as error:
        raise SettingsError(f"{path}: cannot be changed as it is written ({error}); put in the settings by hand") from None
    # Before the file is written, so that it stays as it was where what it would hold is refused.
    new = Params(path, text.encode())
    for section, settings in (("prepare", PrepareSettings), ("train", TrainSettings)):
        if section in new.values:
            new.section(section, settings)
    if changes:
        write_bytes(path, text.encode())
    return changes


def change_lines(changes: Changes) -> list[str]:
    """Return a line for each change."""
    shown = [(key, *("nothing" if value is _NOTHING else flow(value) for value in values)) for key, *values in changes]
    return [f"{key}: {before} -> {after}" for key, before, after in shown]


def _changes(old: dict[str, Any], advice: list[Advice]) -> Iterator[tuple[str, Any, Any]]:
    new = {key: value for key, value, _ in advice}
    if _get(old, "train.engine") in PLAIN_ENGINES and new["train.model.name"] != "linear":
        new["train.engine"] = "torch"
    for part in WHOLE:
        known = _get(old, part)
        new |= {key: _NOTHING for name in (known if isinstance(known, dict) else ()) if (key := f"{part}.{name}") not in new}
    for key, value in new.items():
        before = _get(old, key)
        if before is _NOTHING or value is _NOTHING or flow(before) != flow(value):
            yield key, before, value


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return _NOTHING
        tree = tree[name]
    return tree


def _require_written(text: str, changes: Changes) -> None:
    """Raise ValueError where the text does not hold what it was changed to: an anchor may stand for another place."""
    new = YAML(typ="safe", pure=True).load(text)
    for key, _, value in changes:
        found = _get(new, key)
        if found is not value and (_NOTHING in (found, value) or flow(found) != flow(value)):
            raise ValueError(f"{key} does not take {flow(value)}")


def _cells(column: Column) -> tuple[str, ...]:
    name = repr(one_line(column.name)) if column.name else "(no name)"
    more = f"more than {column.distinct:,}" if column.more_distinct else f"{column.distinct:,}"
    remarks = [f"left out: {column.left_out}"] if column.left_out else []
    return name, column.kind, f"{column.statistics.missing:,}", more, _values(column), "; ".join(remarks + column.remarks)


def _values(column: Column) -> str:
    statistics = column.statistics
    if not column.present:
        return "-"
    if not statistics.texts:
        least, greatest = least_and_greatest(statistics)
        return f"{least:.6g} … {greatest:.6g}"
    values = frequent(statistics.text_values, SHOWN)
    shown = ", ".join(f"{one_line(value, LONGEST_VALUE)!r} {count:,}" for value, count in values)
    return shown + ", …" * (column.distinct > len(values))


def _column(column: Column) -> dict[str, Any]:
    statistics = column.statistics
    return {
        "name": column.name,
        "kind": column.kind,
        "left_out": column.left_out,
        "missing": statistics.missing,
        "distinct": column.distinct,
        "more_distinct": column.more_distinct,
        "least": next(iter(statistics.lowest), None),
        "greatest": next(iter(statistics.highest), None),
        "frequent": dict(frequent(statistics.text_values, SHOWN)),
        "remarks": column.remarks,
    }


def _yaml(advice: list[Advice]) -> Iterator[str]:
    """Yield the settings as lines of YAML, each reason once where it is that of several lines."""
    above: list[str] = []
    reason = ""
    for key, value, why in advice:
        *parts, name = key.split(".")
        for depth, part in enumerate(parts):
            if above[: depth + 1] != parts[: depth + 1]:
                yield f"{'  ' * depth}{part}:"
        above = parts
        indent = 2 * len(parts)
        lines = block(value, indent + 2)
        setting = f"{' ' * indent}{name}:{'' if lines else ' ' + flow(value)}"
        yield f"{setting:<{WHY_COLUMN}} # {why}" if why != reason else setting
        yield from lines
        reason = why
