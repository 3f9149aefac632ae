"""Names on one line, whatever is in them."""

import pytest

from truefit.core.text import one_line, printable


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
