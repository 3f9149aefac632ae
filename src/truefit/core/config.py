"""Sections of params.yaml as frozen, checked objects.

The YAML 1.2 reader is DVC's, so that both see the same values: `1e-3` is a number.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from truefit.core.errors import SettingsError
from truefit.core.text import LONGEST_VALUE, as_yaml

SECTIONS = ("generate", "prepare", "train", "evaluate", "track", "checkpoint", "launch")
PARAMS = Path("params.yaml")
# Aliases can make a small file hold more than any memory, or contain itself. A table may have 10,000 columns.
MOST_VALUES, DEEPEST = 100_000, 20
# What is allowed, by pydantic's type of the error, where its own message does not say it in YAML's words.
_ALLOWED = {
    "model_type": "keys and values",
    "tuple_type": "a valid list",
    "too_short": "at least {min_length} item",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
    "value_error": "{error}",
}
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")  # pydantic's types, the latter for a key that is no text


class Settings(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """A section of params.yaml, or a part of one."""


SettingsT = TypeVar("SettingsT", bound=Settings)


def invalid_value(key: str, found: object, allowed: str) -> PydanticCustomError:
    """Return the error for a value that other keys rule out; `key` is relative to the settings that are checked."""
    text = f"{key}: found {as_yaml(found)}, allowed: {allowed}"
    return PydanticCustomError("invalid_value", "{text}", {"text": text})


def require_defaults(settings: Settings, keys: tuple[str, ...], where: str) -> None:
    """Raise an `invalid_value` error for the first of `keys` that is not at its default, since `where` it has no effect."""
    for key in keys:
        found, default = getattr(settings, key), type(settings).model_fields[key].get_default()
        if found != default:
            raise invalid_value(key, found, f"{as_yaml(default)} {where}")


class Params:
    """params.yaml, parsed once; raises SettingsError for what is no YAML, a section not known, a value no setting can have.

    Where there is `content`, it is taken for that of the file.
    """

    def __init__(self, path: Path = PARAMS, content: bytes | None = None) -> None:
        self.path = path
        self.values = _read(path, content)

    def section(self, name: str, model: type[SettingsT]) -> SettingsT:
        """Return a section as a checked `model`; raises SettingsError, naming key, what was found and what is allowed."""
        if name not in self.values:
            raise SettingsError(f"{self.path}: {name}: not found, allowed: a section with {', '.join(model.model_fields)}")
        try:
            return model.model_validate(self.values[name])
        except ValidationError as error:
            details = error.errors(include_url=False)
            # A key that is not known comes first: what else is wrong may come of it.
            first, *others = [detail for detail in details if detail["type"] in _UNKNOWN_KEY] or details
            # A list whose items are refused counts as too short as well.
            count = sum(detail["type"] != "too_short" for detail in others)
            more = f" (and {count} more)" if count else ""
            raise SettingsError(f"{self.path}: {_explain(name, first, model)}{more}") from None


def _read(path: Path, content_bytes: bytes | None) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        # A byte that is not UTF-8 becomes a surrogate, which the reader refuses as it does control characters.
        text = (path.read_bytes() if content_bytes is None else content_bytes).decode(errors="surrogateescape")
        content = yaml.load(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except ReaderError as error:
        before, code = text[: error.position], error.character
        place = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        if 0xDC80 <= code <= 0xDCFF:
            raise SettingsError(f"{path}: {place}: found the byte {code - 0xDC00:#04x}, allowed: text in UTF-8") from None
        raise SettingsError(f"{path}: {place}: found the character {code:#04x}, allowed: printable text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        raise SettingsError(f"{path}: {place}: {' '.join(str(error.problem).split())}") from None
    except RecursionError:
        raise SettingsError(f"{path}: found values nested too deeply to be read, allowed: {DEEPEST} levels") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: found {as_yaml(content)}, allowed: the sections {', '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise SettingsError(f"{path}: {_unknown(section, SECTIONS)}")
    _require_plain(path, content)
    return content


class _Constructor(SafeConstructor):
    """ruamel's own, which lets Python's errors through, such as that for the date 2021-13-45 or `!!bool maybe`."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):
            kind = node.tag.rpartition(":")[-1]
            raise ConstructorError(None, None, f"found {as_yaml(node.value)}, which is no {kind}", node.start_mark) from None


def _require_plain(path: Path, content: dict[str, Any]) -> None:
    """Raise SettingsError for the first value that JSON, or a path or a name, cannot hold."""
    values: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for place, value in values:  # to which those inside are added meanwhile
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        values += [((*place, _name(key)), item) for key, item in inner]
        if len(place) > DEEPEST:
            place, fault = place[:3], f"values nested too deeply, allowed: {DEEPEST} levels"
        elif len(values) > MOST_VALUES:
            place, fault = place[:1], f"more than {MOST_VALUES} values, allowed: so many at most"
        elif isinstance(value, int) and value.bit_length() > 63:
            fault = f"an integer of {value.bit_length()} bits, allowed: 63 at most"
        elif isinstance(value, str) and (strange := re.search("[\0\ud800-\udfff]", value)):
            fault = f"the character {ord(strange[0]):#04x}, allowed: printable text"
        elif not isinstance(value, dict | list | str | int | float | None):
            fault = f"{as_yaml(value)}, allowed: text, numbers, true, false, null, lists, keys and values"
        else:
            continue
        raise SettingsError(f"{path}: {'.'.join(place)}: found {fault}")


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys; lists stay whole.

    >>> flatten({"train": {"epochs": 50, "model": {"hidden": [8, 4]}}})
    {'train.epochs': 50, 'train.model.hidden': [8, 4]}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _explain(section: str, detail: ErrorDetails, model: Any) -> str:
    kind, place = detail["type"], detail["loc"]
    if kind in _UNKNOWN_KEY:
        for key in place[:-1]:
            model = model.model_fields[key].annotation
        unknown = detail["input"] if kind == "invalid_key" else place[-1]
        return ".".join([section, *map(str, place[:-1]), _unknown(unknown, model.model_fields)])
    path = ".".join([section, *map(str, place)])
    if kind == "invalid_value":
        return f"{path}.{detail['msg']}"
    allowed = detail["msg"].removeprefix("Input should be ")
    if kind in _ALLOWED:
        allowed = _ALLOWED[kind].format(**detail.get("ctx", {}))
    return f"{path}: found {as_yaml(detail['input'])}, allowed: {allowed}"


def _name(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and len(key) <= LONGEST_VALUE else as_yaml(key)


def _unknown(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_name(key)}: unknown key, allowed: {', '.join(known)}{hint}"
