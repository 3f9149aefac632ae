"""The base for settings: a section of params.yaml becomes a frozen, checked object.

Reads params.yaml with the YAML 1.2 reader that DVC uses, so that both see the same values (`1e-3` is a number). Guarantees
that a section that loads is complete and possible, and that all others are data that JSON could hold; everything else is a
SettingsError that names file, key, what was found and what is allowed.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from truefit.core.errors import SettingsError

SECTIONS = ("generate", "prepare", "train", "evaluate", "track", "checkpoint")
PARAMS = Path("params.yaml")
# Aliases can make a small file hold more than any memory, or contain itself.
MOST_VALUES, DEEPEST = 10_000, 20
# As much of a value as an error shows.
LONGEST = 200


class Settings(BaseModel):
    """A section of params.yaml, or a part of one: frozen, no unknown keys, no conversions between types."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise _error(_unknown(key, cls.model_fields))
        return values


SettingsT = TypeVar("SettingsT", bound=Settings)


def invalid_value(key: str, found: object, allowed: str) -> PydanticCustomError:
    """Return the error for a value that other keys rule out; `key` is relative to the settings that are checked."""
    return _error(f"{key}: found {_shown(found)}, allowed: {allowed}")


def _error(text: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{text}", {"text": text})


def require_defaults(settings: Settings, keys: tuple[str, ...], where: str) -> None:
    """Raise an `invalid_value` error for the first of `keys` that is not at its default, since `where` it has no effect."""
    for key in keys:
        found, default = getattr(settings, key), type(settings).model_fields[key].get_default()
        if found != default:
            found, default = (list(value) if isinstance(value, tuple) else value for value in (found, default))
            raise invalid_value(key, found, f"{default!r} {where}")


class Params:
    """params.yaml, parsed once: `values` holds all of it as plain dicts, lists and numbers.

    Raises SettingsError when the file is missing, is not YAML, or holds a section that truefit does not know or a value that
    no setting can have.
    """

    def __init__(self, path: Path = PARAMS) -> None:
        self.path = path
        self.values = _read(path)

    def section(self, name: str, model: type[SettingsT]) -> SettingsT:
        """Return a section as a checked `model`.

        Raises SettingsError, naming the key's path, what was found and what is allowed.
        """
        if name not in self.values:
            raise SettingsError(f"{self.path}: {name}: not found, allowed: a section with {', '.join(model.model_fields)}")
        try:
            return model.model_validate(self.values[name])
        except ValidationError as error:
            details = error.errors(include_url=False)
            # A list whose items are refused counts as too short as well.
            others = sum(detail["type"] != "too_short" for detail in details[1:])
            more = f" (and {others} more)" if others else ""
            raise SettingsError(f"{self.path}: {_explain(name, details[0])}{more}") from None


def _read(path: Path) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        raw = path.read_bytes()
        text = raw.decode()
        content = yaml.load(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        place = _place(raw[: error.start].decode())
        raise SettingsError(f"{path}: {place}: found the byte {raw[error.start]:#04x}, allowed: text in UTF-8") from None
    except ReaderError as error:
        place = _place(text[: error.position])
        raise SettingsError(f"{path}: {place}: found the character {error.character:#04x}, allowed: printable text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SettingsError(f"{path}: {where}{' '.join(str(error.problem).split())}") from None
    except RecursionError:
        raise SettingsError(f"{path}: found values nested too deeply to be read, allowed: {DEEPEST} levels") from None
    except YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: found {_shown(content)}, allowed: the sections {', '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise SettingsError(f"{path}: {_unknown(section, SECTIONS)}")
    if fault := _find_strange(content):
        raise SettingsError(f"{path}: {fault}")
    return content


class _Constructor(SafeConstructor):
    """ruamel's own, which lets Python's errors through, such as that for the date 2021-13-45 or `!!bool maybe`."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError):
            kind = node.tag.rpartition(":")[-1]
            raise ConstructorError(None, None, f"found {_shown(node.value)}, which is no {kind}", node.start_mark) from None


def _place(before: str) -> str:
    """Return the line and column that come after the text `before`."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _find_strange(content: Any) -> str | None:
    """Return what is wrong with the first value that JSON, or a path or a name, cannot hold; None where all are plain."""
    values: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for place, value in values:  # to which those inside are added meanwhile
        path = ".".join(place)
        if len(place) > DEEPEST:
            return f"{'.'.join(place[:3])}: found values nested too deeply, allowed: {DEEPEST} levels"
        if isinstance(value, dict):
            values += [((*place, _name(key)), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            values += [((*place, str(index)), inner) for index, inner in enumerate(value)]
        elif isinstance(value, int) and value.bit_length() > 63:
            return f"{path}: found an integer of {value.bit_length()} bits, allowed: 63 at most"
        elif isinstance(value, str) and (strange := re.search("[\0\ud800-\udfff]", value)):
            return f"{path}: found the character {ord(strange[0]):#04x}, allowed: printable text"
        elif not isinstance(value, str | int | float | None):
            return f"{path}: found {_shown(value)}, allowed: text, numbers, true, false, null, lists, keys and values"
        if len(values) > MOST_VALUES:
            return f"{place[0]}: found more than {MOST_VALUES} values, allowed: so many at most"
    return None


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


def _explain(path: str, detail: ErrorDetails) -> str:
    """Return one validation error as `path: found …, allowed: …`; `path` names the section."""
    path = ".".join([path, *map(str, detail["loc"])])
    if detail["type"] == "invalid_value":
        return f"{path}.{detail['msg']}"
    if detail["type"] == "model_type":
        allowed = "keys and values"
    elif detail["type"] == "tuple_type":
        allowed = "a valid list"
    elif detail["type"] in ("too_short", "string_too_short"):
        least, unit = detail["ctx"]["min_length"], "item" if detail["type"] == "too_short" else "character"
        allowed = f"at least {least} {unit}"
    elif detail["type"] == "value_error":
        allowed = str(detail["ctx"]["error"])
    else:
        allowed = detail["msg"].removeprefix("Input should be ")
    return f"{path}: found {_shown(detail['input'])}, allowed: {allowed}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _name(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and len(key) <= LONGEST else _shown(key)


def _unknown(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_name(key)}: unknown key, allowed: {', '.join(known)}{hint}"
