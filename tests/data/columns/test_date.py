from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_columns import features, parse, taught
from pydantic import ValidationError

from truefit.data.columns.date import Date

COLUMN = Date(name="d")


def days(year: int, month: int, day: int) -> float:
    return float((date(year, month, day) - date(1970, 1, 1)).days)


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("2026-01-31", 0),
        ("2026-01-31 00:00", 0),
        ("2026-01-31T13:45", 49_500),
        ("2026-01-31 13:45:30", 49_530),
        ("2026-01-31T13:45:30.5", 49_530.5),
        ("2026-01-31 13:45:30.015625", 49_530.015625),
        ("2026-01-31T13:45:30Z", 49_530),
        ("2026-01-31T13:45:30+01:00", 45_930),
        ("2026-01-31 13:45-0230", 58_500),
        ("2026-02-01T00:30+01:00", 84_600),
        ("2026-01-30T23:30-02:00", 5400),
    ],
)
@pytest.mark.parametrize("beside", [[], ["2026-01-31"], ["2026-01-31T12:00Z"], ["2026-06-31"]], ids=str)
def test_a_date_is_its_day_and_second_in_utc(text: str, second: float, beside: list[str]) -> None:
    numbers, bad = parse(COLUMN, [text, *beside])

    assert (numbers[0], bad[0]) == ([days(2026, 1, 31), second], False)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2026",
            "2026-01",
            "2026-1-31",
            "26-01-31",
            "31.01.2026",
            "2026-06-31",
            "2026-02-29",
            "2026-13-01",
            "2026-01-00",
        ),
        *("2026-01-31 24:01", "2026-01-31 12:60", "2026-01-31T12", "2026-01-31 12:00 ", "2026-01-31\n", "20260131", "now"),
        *(
            "2026-01-31  12:00",
            "2026-01-31T12:00:00.1234567",
            "2026-01-31+01:00",
            "２０２６-01-31",
            "2026-W05-6",
            "0000-01-01",
        ),
    ],
)
@pytest.mark.parametrize("beside", ["2026-01-31", "2026-01-31T12:00Z", "x"])
def test_other_texts_are_none(text: str, beside: str) -> None:
    assert parse(COLUMN, [beside, text])[1] == [beside == "x", True]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%d/%m/%Y", "31/01/2026", [days(2026, 1, 31), 0]),
        ("%d/%m/%Y", "1/2/2026", [days(2026, 2, 1), 0]),
        ("%d/%m/%Y", "31/06/2026", None),  # for which C's strptime has the 1st of July
        ("%d/%m/%Y", "2026-01-31", None),
        ("%d/%m/%Y", "31/01/2026 12:00", None),
        ("%m/%d/%y %H:%M", "02/29/24 23:59", [days(2024, 2, 29), 86_340]),
        ("%Y%m%d", "20260131", [days(2026, 1, 31), 0]),
        ("%d %b %Y", "05 Mar 1999", [days(1999, 3, 5), 0]),
        ("%Y-%j", "2024-366", [days(2024, 12, 31), 0]),
        ("%Y", "1969", [days(1969, 1, 1), 0]),
        (None, "1066-10-14 06:00", [days(1066, 10, 14), 21_600]),
    ],
)
def test_a_format_says_how_it_is_written(form: str | None, text: str, expected: list[float] | None) -> None:
    numbers, bad = parse(Date(name="d", format=form), [None, text])

    assert bad == [False, expected is None]
    assert np.isnan(numbers[0]).all()
    if expected:
        assert numbers[1] == expected


@pytest.mark.parametrize("form", ["", "%d", "%Y %Q", "%Y %Y", "%Y%", "%d/%m", "%Y %%", "%c"])
def test_what_is_no_format_is_refused(form: str) -> None:
    with pytest.raises(ValidationError, match="Input should be a format with a year, and of %Y %y %m %d %H"):
        Date(name="d", format=form)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_features_are_the_calendars_parts_and_the_days_since_the_first_training_row(dtype: str) -> None:
    moments = [datetime(1899, 12, 31) + timedelta(days=97 * step, hours=7 * step) for step in range(500)]
    column = taught(COLUMN, [moment.isoformat() for moment in moments[3:]], others=[moments[0].isoformat()])
    frame = pd.DataFrame({"at": pd.to_datetime(moments)})["at"].dt

    assert column.features == [f"d.{part}" for part in ("year", "month", "day", "weekday", "day_of_year", "hour", "days")]
    made = np.array(features(column, [moment.isoformat(" ") for moment in moments], dtype))
    expected = [frame.year, frame.month, frame.day, frame.day_of_week, frame.day_of_year, frame.hour]
    np.testing.assert_array_equal(made[:, :6], np.stack(expected, axis=1))
    since = [(moment - datetime(moments[3].year, moments[3].month, moments[3].day)) / timedelta(days=1) for moment in moments]
    # Days are up to 50,000 here, of which float32 holds every 256th part, and float64 far more.
    np.testing.assert_allclose(made[:, 6], since, rtol=0, atol=2**-8 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_last_moment_of_an_hour_is_in_it(dtype: str) -> None:
    texts = ["2026-01-31 23:59:59.999999", "2026-01-31 10:59:59.999", "2026-01-31 11:00:00"]
    column = taught(COLUMN, texts)

    assert [row[5] for row in features(column, texts, dtype)] == [23, 10, 11]
    assert [row[2] for row in features(column, texts, dtype)] == [31] * 3


def test_there_is_an_hour_where_training_rows_have_a_time() -> None:
    with_times = taught(COLUMN, ["2026-01-31", "2026-01-31 12:00"])
    without = taught(COLUMN, ["2026-01-31", "2026-01-31 00:00"], others=["2026-01-31 12:00"])

    assert "d.hour" in with_times.features
    assert "d.hour" not in without.features
    assert features(without, ["2026-02-01 12:00"])[0][-1] == 1.5


@pytest.mark.parametrize(
    ("texts", "middle"),
    [
        (["2026-01-01 06:00", "2026-01-03 08:00", None, "2026-01-10"], "2026-01-03 08:00"),
        (["2026-01-04", "2026-01-01", None], "2026-01-01"),
        (["2026-01-03 23:00", "2026-01-03 01:00", "2026-01-03 02:00:00.5", "2026-01-02 09:00"], "2026-01-03 01:00"),
    ],
)
def test_a_missing_one_is_the_moment_in_the_middle_or_the_earlier_of_two(texts: list[Any], middle: str) -> None:
    column = taught(COLUMN, texts, fills=True)

    assert column.fill == parse(COLUMN, [middle])[0][0]
    known = column.model_copy(update={"gaps": False})
    assert features(known, [None]) == features(known, [middle])


def test_dates_that_are_all_missing_teach_nothing() -> None:
    with pytest.raises(ValueError, match=r"^no value in the training rows$"):
        taught(COLUMN, [None], others=["2026-01-01"])


def test_an_example_holds_dates_that_are_read_again() -> None:
    column = taught(COLUMN, ["2026-01-31 12:00"])

    assert [moment.replace(tzinfo=UTC).timestamp() / 86_400 for moment in column.example(0.0, 1.0)] == [
        days(2026, 1, 31) + more for more in (0, 365, 730)
    ]


@pytest.mark.parametrize("texts", [["2026-01-31", "x", None], [None], []])
def test_the_numbers_have_two_columns_whatever_the_texts(texts: list[Any]) -> None:
    numbers, bad = parse(COLUMN, texts)

    assert all(len(row) == 2 for row in numbers)
    assert bad == [text == "x" for text in texts]
