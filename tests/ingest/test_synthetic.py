import os
from pathlib import Path

import numpy as np
import pytest
from helpers_memory import peak_memory
from numpy.typing import NDArray

from truefit.data.generating import GenerateSettings
from truefit.ingest import synthetic
from truefit.ingest.synthetic import DRAWN_ROWS, draw_chunk, write_csv

Array = NDArray[np.float64]


def read_csv(path: Path) -> tuple[list[str], Array]:
    """Return the header and the values [N, F + 1], read by Python's own float()."""
    header, *rows = path.read_text().splitlines()
    return header.split(","), np.array([[float(cell) for cell in row.split(",")] for row in rows])


def drawn(settings: GenerateSettings, chunks: int) -> Array:
    """Return the chunks' rows [N, F + 1], the target last."""
    return np.vstack([np.column_stack(draw_chunk(settings, chunk)) for chunk in range(chunks)])


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    settings = GenerateSettings(rows=500, coefficients=(2.0, -1.0))
    write_csv(settings, tmp_path / "a.csv")
    write_csv(settings, tmp_path / "b.csv")

    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("cores", [1, 5])
def test_neither_the_number_of_cores_nor_the_pieces_change_a_byte(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerateSettings(rows=DRAWN_ROWS + 5, coefficients=(1.0, -2.0, 0.5))
    write_csv(settings, tmp_path / "a.csv")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(synthetic, "PIECE_BYTES", 8000)
    write_csv(settings, tmp_path / "b.csv")

    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_another_seed_gives_other_rows() -> None:
    (one, _), (other, _) = draw_chunk(GenerateSettings(seed=1), 0), draw_chunk(GenerateSettings(seed=2), 0)

    assert not np.isin(one, other).any()


def test_the_columns_are_x1_to_xf_and_y(tmp_path: Path) -> None:
    write_csv(GenerateSettings(rows=3, coefficients=(1.0,) * 11), tmp_path / "wide.csv")

    header, values = read_csv(tmp_path / "wide.csv")
    assert header == ["x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "y"]
    assert values.shape == (3, 12)


def test_lines_end_with_a_newline_and_nothing_is_quoted(tmp_path: Path) -> None:
    write_csv(GenerateSettings(rows=2), tmp_path / "data.csv")
    content = (tmp_path / "data.csv").read_bytes()

    assert content.count(b"\n") == 3
    assert content.endswith(b"\n")
    assert b'"' not in content
    assert b"\r" not in content


@pytest.mark.parametrize(
    "settings",
    [
        GenerateSettings(rows=2000),
        GenerateSettings(rows=2000, low=-1e-300, high=1e-300, noise_std=1e-305, intercept=0.0),
        GenerateSettings(rows=2000, low=-1e300, high=1e300, intercept=-1e300, coefficients=(1e-3, 1.0, -1.0)),
    ],
)
def test_every_number_reads_back_exactly(settings: GenerateSettings, tmp_path: Path) -> None:
    write_csv(settings, tmp_path / "data.csv")

    _, values = read_csv(tmp_path / "data.csv")
    assert np.array_equal(values.view(np.uint64), drawn(settings, 1).view(np.uint64))


def test_rows_that_span_two_chunks_are_those_of_each_chunk_in_order(tmp_path: Path) -> None:
    settings = GenerateSettings(rows=70_000)
    write_csv(settings, tmp_path / "data.csv")

    _, values = read_csv(tmp_path / "data.csv")
    assert np.array_equal(values, drawn(settings, 2))
    assert len(values) == 70_000
    assert np.array_equal(values[:DRAWN_ROWS], np.column_stack(draw_chunk(settings, 0)))


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 35])
def test_any_number_of_rows_is_written_whole(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "DRAWN_ROWS", 10)
    settings = GenerateSettings(rows=rows)
    write_csv(settings, tmp_path / "data.csv")

    _, values = read_csv(tmp_path / "data.csv")
    assert np.array_equal(values, drawn(settings, -(-rows // 10)))
    assert len(values) == len(np.unique(values[:, 0])) == rows


def test_a_whole_chunk_is_the_same_whatever_the_total_rows() -> None:
    few = draw_chunk(GenerateSettings(rows=70_000), 0)
    many = draw_chunk(GenerateSettings(rows=10**9), 0)

    assert np.array_equal(few[0], many[0])
    assert np.array_equal(few[1], many[1])


def test_a_chunk_does_not_depend_on_the_chunks_drawn_before() -> None:
    settings = GenerateSettings(rows=10**9)
    draw_chunk(settings, 3)
    features, target = draw_chunk(settings, 7)
    draw_chunk(settings, 4)

    assert np.array_equal(features, draw_chunk(settings, 7)[0])
    assert np.array_equal(target, draw_chunk(settings, 7)[1])


def test_no_row_comes_twice_in_different_chunks() -> None:
    settings = GenerateSettings(rows=10**9)
    features = np.concatenate([draw_chunk(settings, chunk)[0][:, 0] for chunk in range(4)])

    # Uniform on 2^53 values: a pair that is equal by chance has a probability of 4e-6.
    assert len(np.unique(features)) == len(features)


def test_without_noise_the_target_is_exactly_on_the_line() -> None:
    features, target = draw_chunk(GenerateSettings(intercept=1.0, coefficients=(2.0, -0.3), noise_std=0.0), 0)

    assert target.tolist() == [1.0 + 2.0 * x1 + -0.3 * x2 for x1, x2 in features.tolist()]


def test_features_are_uniform_from_low_to_high() -> None:
    settings = GenerateSettings(rows=DRAWN_ROWS, coefficients=(1.0, 1.0), low=-3.0, high=5.0)
    features, _ = draw_chunk(settings, 0)
    rows = len(features)

    assert features.min() >= -3.0
    assert features.max() < 5.0
    for column in features.T:
        # Ten bins: each count is about normal with variance rows · 0.1 · 0.9.
        counts, _ = np.histogram(column, bins=10, range=(-3.0, 5.0))
        assert np.abs(counts - rows / 10).max() < 5 * np.sqrt(rows * 0.1 * 0.9)
    assert abs(np.asarray(np.corrcoef(features.T))[0, 1]) < 5 / np.sqrt(rows)


def test_the_noise_is_normal_with_the_standard_deviation_asked_for() -> None:
    settings = GenerateSettings(rows=DRAWN_ROWS, intercept=1.0, coefficients=(2.0,), noise_std=0.1)
    features, target = draw_chunk(settings, 0)
    noise = (target - 1.0 - 2.0 * features[:, 0]) / 0.1
    rows = len(noise)

    assert abs(noise.mean()) < 5 / np.sqrt(rows)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * rows)
    assert abs((np.abs(noise) < 1).mean() - 0.682689) < 5 * np.sqrt(0.683 * 0.317 / rows)
    assert abs((np.abs(noise) < 2).mean() - 0.954500) < 5 * np.sqrt(0.9545 * 0.0455 / rows)
    assert abs(np.corrcoef(noise, features[:, 0])[0, 1]) < 5 / np.sqrt(rows)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 5 / np.sqrt(rows)


def test_least_squares_finds_the_intercept_and_the_coefficients() -> None:
    settings = GenerateSettings(rows=DRAWN_ROWS, intercept=-4.0, coefficients=(2.0, 0.0, -7.5), noise_std=0.5)
    features, target = draw_chunk(settings, 0)

    design = np.column_stack([np.ones(len(features)), features])
    solution, *_ = np.linalg.lstsq(design, target)
    errors = 0.5 * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    assert (np.abs(solution - [-4.0, 2.0, 0.0, -7.5]) < 5 * errors).all()


def test_a_file_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    write_csv(GenerateSettings(rows=100), tmp_path / "data.csv")
    write_csv(GenerateSettings(rows=5), tmp_path / "data.csv")

    assert len(read_csv(tmp_path / "data.csv")[1]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_no_progress_bar_is_written_where_stderr_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_csv(GenerateSettings(rows=100), tmp_path / "data.csv")

    assert capfd.readouterr() == ("", "")


def test_the_global_stream_is_not_moved(tmp_path: Path) -> None:
    before = np.random.get_state()
    write_csv(GenerateSettings(rows=100), tmp_path / "data.csv")

    assert all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True))


WRITE = """
import os
if hasattr(os, "sched_setaffinity"):  # each core holds pieces of its own
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from truefit.data.generating import GenerateSettings
from truefit.ingest.synthetic import write_csv
write_csv(GenerateSettings(rows={rows}, coefficients=[1.0] * {columns}), Path("data.csv"))
"""


@pytest.mark.parametrize(("columns", "few", "many"), [(4, 200_000, 1_200_000), (1000, 4000, 16_000)])
def test_memory_does_not_grow_with_the_rows(columns: int, few: int, many: int, tmp_path: Path) -> None:
    small, large = (peak_memory(WRITE.format(rows=rows, columns=columns), tmp_path) for rows in (few, many))
    # Between the two, the numbers grow by 40 or 96 MB and the CSV by 90 or 220 MB.
    assert large - small < 40
