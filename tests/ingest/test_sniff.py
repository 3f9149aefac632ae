"""The format of a CSV that nobody has described."""

import bz2
import csv
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from truefit.core.errors import TableError
from truefit.ingest import sniff as sniffing
from truefit.ingest.sniff import sniff

HOUSES = (
    "area,rooms,city,sold,price\n52.5,2,Rome,2024-01-31,1200.5\n61.25,3,New York,2024-02-01,2300.25\n70.5,3,,2024-03-09,900\n"
)


def written(folder: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(folder: Path, content: str | bytes) -> dict[str, Any]:
    """Return what differs from the default format."""
    form = sniff(written(folder, content)).form
    return form.model_dump(exclude_defaults=True)


def test_a_plain_csv_has_the_default_format_with_a_reason_for_each_key(tmp_path: Path) -> None:
    form, why = sniff(written(tmp_path, HOUSES))
    assert form.model_dump(exclude_defaults=True) == {}
    assert why["separator"] == "5 cells in 4 of the first 4 rows"
    assert why["header"] == "'area' is above numbers"
    assert {*why} == {*form.model_dump()} - {"missing"}


def dialects() -> list[Any]:
    signs = [(".", None), (",", None), (".", ","), (",", "."), (".", " "), (".", "'")]
    return [
        pytest.param(separator, decimal, thousands, header, id=repr((separator, decimal, thousands, header)))
        for separator, (decimal, thousands), header in product([",", ";", "\t", "|"], signs, [True, False])
        if decimal != separator
    ]


@pytest.mark.parametrize(("separator", "decimal", "thousands", "header"), dialects())
def test_separator_signs_and_header_are_found(
    tmp_path: Path, separator: str, decimal: str, thousands: str | None, header: bool
) -> None:
    draw = random.Random(f"{separator}{decimal}{thousands}{header}")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    if header:
        writer.writerow(["size", "city", "day", "big", "price"])
    for _ in range(30):
        big = f"{draw.randint(1000, 9_999_999):,}".replace(",", thousands or "")
        price = f"{draw.gauss(50, 30):.2f}".replace(".", decimal)
        day = f"2024-01-{draw.randint(1, 28):02} 12:00:00"
        writer.writerow([draw.randint(0, 99), draw.choice(["Rome", "New York", "Rio, Brazil"]), day, big, price])
    form = sniff(written(tmp_path, text.getvalue())).form
    assert (form.separator, form.decimal, form.thousands, form.header) == (separator, decimal, thousands, header)


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (" 1.0   2.0  10.0\n 2.0   2.5  12.0\n", {"separator": " ", "header": False}),
        ('18.0   8   1\t"ford torino"\n15.0   8   2\t"buick skylark 320"\n', {"separator": " ", "header": False}),
        ("x z y\n1 2 3\n2 3  5\n3 4 7 \n", {"separator": " "}),
        ("# by hand, 2024\n# in m\nx,y\n1,2\n", {"comment": "#"}),
        ("% by hand\n1,2\n3,4\n", {"comment": "%", "header": False}),
        ("#x,y\n1,2\n", {}),
        ("M,0.4,15\nF,0.3,7\nM,0.5,9\nF,0.5,9\nM,0.1,2\nF,0.2,5\n", {"header": False}),
        ("5,1,5\n4,3,9\n", {"header": False}),
        ("country,1990,1991\nItaly,1,2\nNorway,2,4\n", {}),
        ("country,1/22/20,1/23/20\nItaly,1,2\nNorway,2,4\n", {}),
        (",x,y\n1,2,3\n2,3,5\n", {}),
        ("x,y\n", {}),
        ("name\tx\nLos Angeles\t4.5\nRio de Janeiro\t5.5\nBonn\t2.5\nSan Jose\t1.5\nNew York\t7.5\n", {"separator": "\t"}),
        ('a;b\n"1;2;3";5\n"2;3";6\n', {"separator": ";"}),
        ("name;price\n'tis;1,5\n'twas;2,5\n", {"separator": ";", "decimal": ","}),
        ("straße,y\n1,2\n".encode("latin-1"), {"encoding": "cp1252"}),
        (b"a\x81b,y\n1,2\n", {"encoding": "latin-1"}),
        ("straße,y\n1,2\n".encode("utf-16"), {"encoding": "utf-16"}),
        ("straße,y\n1,2\n".encode("utf-8-sig"), {}),
    ],
)
def test_what_real_files_look_like(tmp_path: Path, content: str | bytes, form: dict[str, Any]) -> None:
    assert found(tmp_path, content) == form


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.csv", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, zipped, lambda content: pa.compress(content, "zstd", asbytes=True)],
    ids=["gzip", "bz2", "xz", "zip", "zstd"],
)
def test_a_format_is_found_in_a_container(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert found(tmp_path, pack(HOUSES.replace(",", ";").encode())) == {"separator": ";"}


def test_a_part_of_a_row_at_the_end_of_the_first_part_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The part ends within a letter of two bytes, and within a quoted cell.
    content = 'x,y\n1,2\n2,"3é;;;;\n;"\n'.encode()
    monkeypatch.setattr(sniffing, "HEAD_BYTES", content.index(b"\xa9"))
    form, why = sniff(written(tmp_path, content))
    assert (form.separator, form.encoding) == (",", "utf-8")
    assert why["separator"] == "2 cells in 2 of the first 2 rows"


def test_what_is_no_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="found a Parquet file"):
        sniff(written(tmp_path, b"PAR1\x15\x04"))


@pytest.mark.parametrize("sign", "#%")
def test_rows_that_begin_with_the_sign_of_comments_are_never_left_out(tmp_path: Path, sign: str) -> None:
    rows = "".join(f"{sign}ff{row:04},{row},{2 * row}\n" for row in range(90))
    with pytest.raises(TableError, match=f"found 90 rows that begin with '{sign}', as do the comments"):
        sniff(written(tmp_path, f"{sign} colours\ncolour,x,y\n{rows}"))
    assert found(tmp_path, f"{sign}colour,x,y\nred,1,2\n{rows}") == {}
    assert found(tmp_path, f"{sign}colour,x,y\n{rows}") == {}
    assert found(tmp_path, f"{sign} colours\ncolour,x,y\nred,1,2\n{sign} end\n") == {"comment": sign}
    assert found(tmp_path, rows) == {"header": False}


def test_words_of_long_texts_are_no_cells(tmp_path: Path) -> None:
    rows = "".join(f"a long text of seven words {'xy'[row % 2]},{row},{row % 7}\n" for row in range(99))
    assert found(tmp_path, f"t,x,y\n{rows}") == {}
    assert found(tmp_path, f"t\tx\ty\n{rows}".replace(",", "\t")) == {"separator": "\t"}
