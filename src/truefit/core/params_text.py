"""The text of params.yaml with other values: all around them, comments above all, stays as it is."""

import json
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

LONGEST = 88  # characters of a list or of keys and values on one line
_PLAIN = re.compile(r"(?:\.{0,2}/)?[A-Za-z](?:[\w./-]*[\w/])?")
_RESERVED = re.compile("(?i:y|n|yes|no|on|off|true|false|null)")
_NEXT_COMMENT = re.compile(r"( *)(#.*)?")


def flow(value: Any) -> str:
    """Return a value as YAML on one line.

    >>> print(flow({"sold at": {"kind": "date"}, "region": "no", "rates": [0.1, None]}))
    {"sold at": {kind: date}, region: "no", rates: [0.1, null]}
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _RESERVED.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


def block(value: Any, indent: int) -> list[str]:
    """Return the lines below its key of a value that is long for one line, or none."""
    if len(flow(value)) <= LONGEST or not isinstance(value, list | dict):
        return []
    items = (
        ((f"{flow(str(key))}: ", item) for key, item in value.items())
        if isinstance(value, dict)
        else (("- ", item) for item in value)
    )
    return [f"{' ' * indent}{start}{flow(item)}" for start, item in items]


def with_value(text: str, keys: list[str], value: Any) -> str:
    """Return the text with the value at `keys`, which is added where it is not there yet."""
    parents, last = _find(text, keys)
    parent = parents[-1]
    if last is not None:
        return _replaced(text, parent, *last, value)
    missing = keys[len(parents) - 1 :]
    end = _end(text, parent)
    if parent.flow_style:
        for key in reversed(missing[1:]):
            value = {key: value}
        before, at = ", " if parent.value else "", end - 1
        return f"{text[:at]}{before}{flow(missing[0])}: {flow(value)}{text[at:]}"
    indent, at = parent.value[0][0].start_mark.column, _line_end(text, end)
    lines = [f"{' ' * (indent + 2 * depth)}{flow(key)}:" for depth, key in enumerate(missing)]
    below = block(value, indent + 2 * len(missing))
    lines = [*lines, *below] if below else [*lines[:-1], f"{lines[-1]} {flow(value)}"]
    return text[:at] + "".join("\n" + line for line in lines) + text[at:]


def without(text: str, keys: list[str]) -> str:
    """Return the text without the line or lines of a key that is there."""
    parents, last = _find(text, keys)
    if last is None or parents[-1].flow_style:
        raise ValueError("a mapping on one line is to lose a key")
    key, value = last
    start = text.rindex("\n", 0, key.start_mark.index)
    return text[:start] + text[_line_end(text, _end(text, value)) :]


def _find(text: str, keys: list[str]) -> tuple[list[MappingNode], tuple[Node, Node] | None]:
    """Return the mappings on the way to a key, and the nodes of the key and its value where it is there."""
    node = YAML(pure=True).compose(text)
    parents, found = list[MappingNode](), None
    for key in keys:
        if not isinstance(node, MappingNode):
            raise ValueError("a value is no mapping")  # noqa: TRY004 (of the text)
        parents.append(node)
        found = next((pair for pair in node.value if pair[0].value == key), None)
        if found is None:
            return parents, None
        node = found[1]
    return parents, found


def _replaced(text: str, parent: MappingNode, key: Node, value: Node, new: Any) -> str:
    start, end = value.start_mark.index, _end(text, value)
    if parent.flow_style:
        return text[:start] + flow(new) + text[end:]
    colon = text.index(":", key.end_mark.index) + 1
    below = _is_block(value) and "\n" in text[colon:start]
    # A comment is behind the value, or behind the colon of a value in the lines below it.
    head = text[colon : _line_end(text, colon)] if below else " " * (end - colon) + text[end : _line_end(text, end)]
    lines = block(new, key.start_mark.column + 2)
    shown = "" if lines else f" {flow(new)}"
    rest = text[_line_end(text, end) :]
    return text[:colon] + shown + _in_its_column(shown, head) + "".join("\n" + line for line in lines) + rest


def _in_its_column(shown: str, head: str) -> str:
    """Return what is behind a value with the blanks that leave its comment where it was, one at least."""
    blanks, comment = _NEXT_COMMENT.match(head).groups()  # type: ignore[union-attr]
    return " " * max(1, len(blanks) - len(shown)) + comment if comment else ""


def _is_block(node: Node) -> bool:
    return isinstance(node, CollectionNode) and not node.flow_style


def _end(text: str, node: Node) -> int:
    """Return where a value's text ends, without what follows: ruamel counts blank lines and comments to a block."""
    if _is_block(node) and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start, end = int(node.start_mark.index), int(node.end_mark.index)
    return start + len(text[start:end].rstrip())


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found
