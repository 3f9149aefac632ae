"""The pictures: which there are, whole PNGs, the same bytes each time, and nothing changed outside them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray

import truefit
from truefit.evaluation.figures import INK, MODEL, ROWS, draw_figures, rerun_picture
from truefit.evaluation.metrics import line_predictor

SRC = Path(truefit.__file__).parents[1]

UNIT = "in the unit of {}, squared"
ORANGE, GREY = (217, 95, 2), (178, 178, 178)  # of the model and of the rows


def history(*losses: tuple[float, float]) -> pd.DataFrame:
    """Return a history with these training and validation losses."""
    rows = [(number, *pair, 0.1) for number, pair in enumerate(losses, start=1)]
    return pd.DataFrame(rows, columns=["epoch", "train_loss", "validation_loss", "learning_rate"])


FALLING = history((1.0, 1.1), (0.5, 0.6), (0.25, 0.4))


def write(
    folder: Path,
    features: int = 1,
    epochs: pd.DataFrame = FALLING,
    names: list[str] | None = None,
    seed: int = 0,
    levels: dict[str, float] | None = None,
) -> dict[str, Path]:
    """Write the figures of 30 test rows and return them by name."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(30, features))
    actual, predicted = generator.normal(size=30), generator.normal(size=30)
    columns = {"row": range(30), "actual": actual, "predicted": predicted, "residual": actual - predicted}
    named = names or [f"x{number}" for number in range(1, features + 1)] + ["y"]
    best = line_predictor(np.array([0.0] + [1.0] * features))
    table = pd.DataFrame(columns)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_figures(epochs, levels or {}, x, table, best, named, UNIT)
    for name, content in drawn.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in drawn}


def pixels(path: Path) -> NDArray[np.int64]:
    """Return the picture's colours [H, W, 3], 0 to 255; fails unless the file is a whole PNG."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    picture: NDArray[np.int64] = np.rint(np.asarray(imread(path))[..., :3] * 255).astype(np.int64)
    return picture


def count(picture: NDArray[np.int64], colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - np.array(colour)).max(axis=-1) <= 2).sum())


@pytest.fixture(scope="module")
def one_feature(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("one") / "results" / "figures", features=1)


@pytest.fixture(scope="module")
def two_features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("two") / "results" / "figures", features=2)


def in_folder(written: dict[str, Path]) -> set[Path]:
    return set(next(iter(written.values())).parent.iterdir())


def test_one_feature_gives_a_picture_of_the_fit(one_feature: dict[str, Path]) -> None:
    assert list(one_feature) == ["loss.png", "fit.png", "residuals.png"]
    assert set(one_feature.values()) == in_folder(one_feature)


def test_several_features_give_a_picture_of_predicted_against_actual(two_features: dict[str, Path]) -> None:
    assert list(two_features) == ["loss.png", "predicted.png", "residuals.png"]
    assert set(two_features.values()) == in_folder(two_features)


def test_every_picture_is_a_whole_png_with_the_model_in_it(
    one_feature: dict[str, Path], two_features: dict[str, Path]
) -> None:
    for path in [*one_feature.values(), *two_features.values()]:
        picture = pixels(path)
        assert picture.shape == (480, 768, 3)
        assert count(picture, ORANGE) > 100


def test_the_fit_shows_the_test_rows_too(one_feature: dict[str, Path]) -> None:
    assert count(pixels(one_feature["fit.png"]), GREY) > 100


def test_the_same_figures_have_the_same_bytes(
    tmp_path: Path, one_feature: dict[str, Path], two_features: dict[str, Path]
) -> None:
    for features, before in ((1, one_feature), (2, two_features)):
        for name, path in write(tmp_path / str(features), features).items():
            assert path.read_bytes() == before[name].read_bytes()


def test_other_values_make_other_pictures(tmp_path: Path, one_feature: dict[str, Path], two_features: dict[str, Path]) -> None:
    losses = history((1.0, 1.1), (0.5, 0.6), (0.25, 0.1))
    for features, before in ((1, one_feature), (2, two_features)):
        for name, path in write(tmp_path / str(features), features, losses, seed=1).items():
            assert path.read_bytes() != before[name].read_bytes()


@pytest.mark.parametrize("name", ["$^$", r"50%_of\frac", "a^b {c"])
def test_any_column_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    for path in write(tmp_path, names=[name, name]).values():
        assert count(pixels(path), ORANGE) > 0


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("价格 €", r"\u4ef7\u683c €"), ("sold\nat", r"sold\nat"), ("n" * 300, "n" * 24 + "…")],
    ids=["no glyphs", "line break", "long"],
)
def test_a_name_that_cannot_be_drawn_as_it_is_is_escaped_or_cut(tmp_path: Path, name: str, drawn: str) -> None:
    as_is, by_hand = (write(tmp_path / folder, names=[label] * 2) for folder, label in (("a", name), ("b", drawn)))
    assert [path.read_bytes() for path in as_is.values()] == [path.read_bytes() for path in by_hand.values()]


@pytest.mark.parametrize("features", [1, 2])
def test_dollars_in_a_column_name_are_drawn_and_do_not_make_a_formula(tmp_path: Path, features: int) -> None:
    with_dollars, without = (write(tmp_path / name, features, names=[name] * (features + 1)) for name in ("US$ CA$", "US CA"))
    for picture in list(without)[1:]:
        dark = [int((pixels(written[picture]).max(axis=-1) < 100).sum()) for written in (without, with_dollars)]
        assert dark[0] < dark[1]


def test_a_loss_of_zero_which_a_logarithm_cannot_show_makes_a_picture_all_the_same(tmp_path: Path) -> None:
    assert count(pixels(write(tmp_path, epochs=history((1.0, 0.5), (0.5, 0.4), (0.0, 0.3)))["loss.png"]), ORANGE) > 100


def test_a_single_epoch_can_be_seen(tmp_path: Path) -> None:
    # The legend holds some of the validation loss's orange in any case; a curve of one point must add to it.
    one = pixels(write(tmp_path / "one", epochs=history((1.0, 2.0)))["loss.png"])
    legend_alone = pixels(write(tmp_path / "none", epochs=history((1.0, float("nan"))))["loss.png"])
    assert count(one, ORANGE) > count(legend_alone, ORANGE)


def test_levels_are_a_dotted_and_a_broad_pale_line_across_the_losses(tmp_path: Path, one_feature: dict[str, Path]) -> None:
    none = pixels(one_feature["loss.png"])
    one, both = (
        pixels(write(tmp_path / str(len(levels)), levels=levels)["loss.png"])
        for levels in ({"least squares": 0.3}, {"least squares": 0.3, "noise floor": 0.7})
    )
    dark = [(picture.max(axis=-1) < 120).sum(axis=1) for picture in (none, one)]  # in each row of pixels
    assert (dark[1] - dark[0]).max() > 100
    pale = (204, 204, 204)
    assert count(both, pale) > 3000 > count(one, pale)


def test_a_level_far_below_the_losses_does_not_press_them_flat(tmp_path: Path, one_feature: dict[str, Path]) -> None:
    without = one_feature["loss.png"].read_bytes()
    for level in (0.0, 1e-9, 1e-33):
        assert write(tmp_path / str(level), levels={"noise floor": level})["loss.png"].read_bytes() == without
    assert write(tmp_path / "near", levels={"noise floor": 0.01})["loss.png"].read_bytes() != without


def test_the_model_the_rows_and_the_rest_can_be_told_apart_in_grey() -> None:
    greys = sorted(float(np.dot(to_rgb(colour), [0.299, 0.587, 0.114])) for colour in (INK, MODEL, ROWS))
    assert np.diff(greys).min() > 0.2


def test_a_model_that_predicts_the_same_everywhere_makes_pictures_all_the_same(tmp_path: Path) -> None:
    x: NDArray[Any] = np.ones((5, 2))
    table = pd.DataFrame({"row": range(5), "actual": 1.0, "predicted": 1.0, "residual": 0.0})
    for name, content in draw_figures(FALLING, {}, x, table, line_predictor(np.ones(3)), ["x1", "x2", "y"], UNIT).items():
        (tmp_path / name).write_bytes(content)
        assert count(pixels(tmp_path / name), ORANGE) > 0


def test_drawing_changes_nothing_in_matplotlib_and_needs_no_pyplot(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import matplotlib as mpl, numpy as np, pandas as pd
before = mpl.rcParams.copy()
from truefit.evaluation.figures import draw_figures
history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_loss": [1.0, 0.5]})
rows = pd.DataFrame({"actual": [0.0, 1.0], "predicted": [0.0, 1.0], "residual": [0.0, 0.0]})
drawn = draw_figures(history, {}, np.array([[0.0], [1.0]]), rows, lambda features: features[:, 0], ["x", "y"], "{}")
Path(sys.argv[1], "fit.png").write_bytes(drawn["fit.png"])
assert mpl.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "fit.png").exists()


def test_picture_of_a_rerun_shows_both_curves_and_their_difference(tmp_path: Path) -> None:
    recorded = FALLING.set_index("epoch")
    again = recorded.copy()
    again.loc[3, "train_loss"] = 0.375
    same, other = tmp_path / "same.png", tmp_path / "other.png"
    same.write_bytes(rerun_picture(recorded, recorded))
    other.write_bytes(rerun_picture(recorded, again))
    assert count(pixels(same), ORANGE) > 100
    assert (pixels(same) != pixels(other)).any()
    assert same.read_bytes() == rerun_picture(recorded, recorded)
    rerun_picture(recorded.iloc[:1], recorded.iloc[:0])  # curves of other lengths
