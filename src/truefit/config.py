"""The base for settings: a section of params.yaml becomes a frozen, checked object.

Reads params.yaml with the YAML 1.2 reader that DVC uses, so that both see the same values (`1e-3` is a number). Guarantees
that a section that loads is complete and possible; everything else is a SettingsError that names file, key, what was
found and what is allowed.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from truefit.errors import SettingsError

SECTIONS = ("generate", "prepare", "train", "evaluate", "track", "checkpoint")
PARAMS = Path("params.yaml")


class Settings(BaseModel):
    """A section of params.yaml, or a part of one: frozen, no unknown keys, no conversions between types."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise _error(f"{key}: {_unknown(str(key), cls.model_fields)}")
        return values


SettingsT = TypeVar("SettingsT", bound=Settings)


def impossible(key: str, found: object, allowed: str) -> PydanticCustomError:
    """Return the error for a value that other keys rule out; `key` is relative to the settings that are checked."""
    return _error(f"{key}: found {found!r}, allowed: {allowed}")


def _error(text: str) -> PydanticCustomError:
    return PydanticCustomError("impossible", "{text}", {"text": text})


def require_defaults(settings: Settings, keys: tuple[str, ...], where: str) -> None:
    """Raise an `impossible` error for the first of `keys` that is not at its default, since `where` it has no effect."""
    for key in keys:
        found, default = getattr(settings, key), type(settings).model_fields[key].get_default()
        if found != default:
            found, default = (list(value) if isinstance(value, tuple) else value for value in (found, default))
            raise impossible(key, found, f"{default!r} {where}")


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Return the whole of params.yaml as plain dicts, lists and numbers.

    Raises SettingsError when the file is missing, is not YAML, or holds a section that truefit does not know.
    """
    try:
        content = YAML(typ="safe").load(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SettingsError(f"{path}: {place}{' '.join(str(error.problem).split())}") from None
    # A value such as the date 2021-13-45 is a ValueError, and so is text that is not UTF-8.
    except (YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: found {content!r}, allowed: the sections {', '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise SettingsError(f"{path}: {section}: {_unknown(str(section), SECTIONS)}")
    return content


def load_settings(section: str, model: type[SettingsT], path: Path = PARAMS) -> SettingsT:
    """Return params.yaml's `section` as a checked `model`.

    Raises SettingsError, naming the key's path, what was found and what is allowed.
    """
    params = read_params(path)
    if section not in params:
        raise SettingsError(f"{path}: {section}: not found, allowed: a section with {', '.join(model.model_fields)}")
    try:
        return model.model_validate(params[section])
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list whose items are refused counts as too short as well.
        others = sum(detail["type"] != "too_short" for detail in details[1:])
        more = f" (and {others} more)" if others else ""
        raise SettingsError(f"{path}: {_explain(section, details[0])}{more}") from None


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys: `{"train": {"lr": 1}}` becomes `{"train.lr": 1}`; lists stay whole."""
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
    if detail["type"] == "impossible":
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
    return f"{path}: found {detail['input']!r}, allowed: {allowed}"


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown key, allowed: {', '.join(known)}{hint}"
