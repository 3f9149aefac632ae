"""The kinds of columns; another one is a class in a file of its own, and its line in KINDS."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from truefit.core.text import as_yaml
from truefit.data.columns.base import Column
from truefit.data.columns.boolean import Boolean
from truefit.data.columns.category import Category
from truefit.data.columns.date import Date
from truefit.data.columns.number import Number

KINDS: dict[str, type[Column]] = {"number": Number, "boolean": Boolean, "category": Category, "date": Date}


def column_from(described: Any) -> Column:
    """Return the column that a description in JSON says, by its kind."""
    if isinstance(described, Column):
        return described
    kind = described.get("kind") if isinstance(described, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise PydanticCustomError(
            "kind", "found the kind {kind}, allowed: {kinds}", {"kind": as_yaml(kind), "kinds": ", ".join(KINDS)}
        )
    return KINDS[kind].model_validate(described)


AnyColumn = Annotated[SerializeAsAny[Column], BeforeValidator(column_from)]
