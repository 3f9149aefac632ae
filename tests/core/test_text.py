"""Names on one line, whatever is in them."""

import datetime

import pytest

from truefit.core.text import as_yaml, one_line, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x1", "x1"),
        ("größe 中文 $", "größe 中文 $"),
        ("a\nb\tc\x00", r"a\nb\tc\x00"),
        ("\u202eabc\u3000d", r"\u202eabc\u3000d"),  # one that turns the line round, and a blank of another width
        ("\udcff", r"\udcff"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("x" * 38 + "\nx", "x" * 38 + "…"),  # 41, and no room for an escape and an ellipsis
        ("x" * 38 + "\n", "x" * 38 + r"\n"),
        ("\n" * 300, r"\n" * 19 + "…"),
    ],
)
def test_a_name_is_shown_on_one_line_escaped_and_cut(name: str, shown: str) -> None:
    assert one_line(name) == shown


def test_any_character_is_shown_by_printable_ones() -> None:
    wrong = [code for code in range(0x110000) if not printable(chr(code)).isprintable()]
    assert wrong == []


def test_what_a_font_lacks_is_escaped() -> None:
    assert one_line("größe 中", drawable=set(map(ord, "größe "))) == r"größe \u4e2d"
    assert one_line("\n", drawable={ord("\n")}) == r"\n"


HOLDS_ITSELF: list[object] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        ([True, False, 0, 1.0, 1e-05], "[true, false, 0, 1.0, 1e-05]"),
        ("true", "'true'"),
        ("a\nb", r"'a\nb'"),
        ((), "[]"),
        ({None: {}, "region": ["no", None]}, "{null: {}, 'region': ['no', null]}"),
        (float("nan"), ".nan"),
        (-float("inf"), "-.inf"),
        ([datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 12)], "[2020-01-01, 2020-01-01 12:00:00]"),
        ("x" * 300, "'" + "x" * 199 + "…"),
        (HOLDS_ITSELF, "[" * 200 + "…"),
    ],
)
def test_a_setting_s_value_is_shown_as_yaml_spells_it_and_cut(value: object, shown: str) -> None:
    assert as_yaml(value) == shown
