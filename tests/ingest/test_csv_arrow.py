"""Quotes that are called sound are read by pyarrow as by Python's strict reader; its forgiveness is for the others."""

import csv
import io
from collections.abc import Sequence
from itertools import product

import pyarrow as pa
import pyarrow.csv
import pytest
from helpers_torture import fuzz
from hypothesis import given
from hypothesis import strategies as st

from truefit.ingest.csv_arrow import _Quotes


def are_sound(text: str, separator: str = ",", cuts: Sequence[int] = ()) -> bool:
    """Return what is said of a text that comes in blocks, cut at these places."""
    quotes, content = _Quotes(separator), text.encode()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        quotes.add(content[begin:end])
    return quotes.are_sound()


def rows_of(text: str, separator: str) -> list[list[str]]:
    """Return the rows that Python's strict reader finds; raises csv.Error where it refuses the text."""
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]


def assert_agreed(text: str, separator: str) -> None:
    """Assert that pyarrow reads the cells that Python does, or refuses rows of different lengths."""
    rows = rows_of(text, separator)
    if not rows or len({len(row) for row in rows}) > 1:
        return
    names = [str(place) for place in range(len(rows[0]))]
    table = pyarrow.csv.read_csv(
        io.BytesIO(text.encode()),
        pyarrow.csv.ReadOptions(column_names=names),
        pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    assert [list(row.values()) for row in table.to_pylist()] == rows


def test_of_all_short_texts_those_that_are_sound_are_read_alike() -> None:
    texts = ["".join(pieces) for length in range(7) for pieces in product('",\na', repeat=length)]
    sound = [text for text in texts if are_sound(text)]

    assert len(sound) > 1000
    assert sum('"' in text for text in sound) > 300
    for text in sound:
        assert_agreed(text, ",")


@given(
    pieces=st.lists(
        st.sampled_from(['"', '"', '""', ',"', '",', ",", ";", "\n", "\r", "\r\n", '"\n', '\n"', " ", "a", "ü"]), max_size=16
    ),
    separator=st.sampled_from([",", ";", " "]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@fuzz(examples=250)
def test_of_any_text_that_is_sound_pyarrow_reads_the_cells_of_python(
    pieces: list[str], separator: str, cuts: list[int]
) -> None:
    text = "".join(pieces)

    sound = are_sound(text, separator, [min(cut, len(text.encode())) for cut in cuts])

    assert sound == are_sound(text, separator)
    if sound:
        assert_agreed(text, separator)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_a_writer_of_csvs_quotes_is_sound(quoting: int, separator: str, mark: str) -> None:
    cells = ["a", "", '"', '""', 'say "b"', "two\nlines", "x,y;z|\t", " ", '",', ',"', "größe", "\r\n"]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([first, second, third] for first, second, third in product(cells, repeat=3))

    assert are_sound(mark + file.getvalue(), separator)


@pytest.mark.parametrize(
    "text", ['a,"b\nc,d\n', 'a,"b"c\n', 'a,"b" \n', 'a,b"\n', 'a, "b"\n', '"a,b\n"c",d\n', '"', '""a', 'a"b"c', '"a"\x00,b']
)
def test_quotes_that_readers_take_differently_are_not_sound(text: str) -> None:
    assert not are_sound(text)
