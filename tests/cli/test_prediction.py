"""`truefit predict`: the text stays, the numbers are the model's, and what is wrong is refused with nothing written."""

import csv
import gzip
import io
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_memory import peak_memories
from helpers_training import SCALED, UNSCALED, save_untrained, untrained

from truefit.cli import prediction
from truefit.cli.prediction import predict
from truefit.core.errors import TableError, TruefitError
from truefit.data.columns.number import Number
from truefit.data.table import Dtype
from truefit.ingest import csv_text
from truefit.model.files import ModelDescription, open_model, state_dict_bytes
from truefit.model.models import ModelSettings
from truefit.model.scaling import ScaleSettings
from truefit.model.serving import MODEL_ROWS
from truefit.rerun.records import find, read_model
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.provenance import Origin
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

LINEAR = ModelSettings()
MLP = ModelSettings(name="mlp", hidden=(7, 5), activation="tanh", dropout=0.5)
NUMBERED = numbered_csv(20, features=2)
MISSING = "allowed: a number (1 value is missing; a model trained with prepare.missing: {features: fill})"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(
    settings: ModelSettings = LINEAR, scale: ScaleSettings = UNSCALED, dtype: Dtype = "float32", features: int = 2
) -> tuple[Any, ModelDescription]:
    """Save a model for x1 … xF that nobody trained in `model`, and return it as it is read from there."""
    table = prepare(Path(), numbered_csv(20, features), dtype=dtype)
    save_untrained(Path("model"), table, settings, scale, seed=3)
    return open_model(Path("model"))


def line(dtype: Dtype = "float32", weight: float = 2.0) -> tuple[Any, ModelDescription]:
    """Return the model 1 + weight·x1 + 0·x2, whose predictions are known by heart."""
    model, description = save(dtype=dtype)
    with torch.no_grad():
        model.body.weight[:] = torch.tensor([[weight, 0.0]])
        model.body.bias[:] = 1.0
    return model, description


def predicted(content: str | bytes, model: tuple[Any, ModelDescription] | None = None, **settings: Any) -> bytes:
    """Return what is written for a CSV."""
    Path("in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    predict(*(model or line()), Path("in.csv"), Path("out.csv"), **settings)
    return Path("out.csv").read_bytes()


def refusal(content: str | bytes, model: tuple[Any, ModelDescription] | None = None, **settings: Any) -> str:
    """Return the text of the error for a CSV, for which nothing may be written and nothing may change."""
    Path("out.csv").write_text("before")
    model = model or line()
    before = {path.name for path in Path().iterdir()} | {"in.csv"}
    with pytest.raises(TableError) as caught:
        predicted(content, model, **settings)
    assert Path("out.csv").read_text() == "before"
    assert {path.name for path in Path().iterdir()} == before
    return str(caught.value)


# --- the text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x1,x2,y\n1,2,3\n4,5,6\n", "x1,x2,y,prediction\n1,2,3,3\n4,5,6,9\n"),
        ("x2,x1\n2,1\n5,4", "x2,x1,prediction\n2,1,3\n5,4,9"),
        ("x1,x2\r\n1,2\r\n\r\n4,5\r\n\r\n", "x1,x2,prediction\r\n1,2,3\r\n\r\n4,5,9\r\n\r\n"),
        ("x1,x2\r1,2\r4,5\r", "x1,x2,prediction\r1,2,3\r4,5,9\r"),
        ("\n\nx1,x2\n\n01.50, 2e0 \n", "\n\nx1,x2,prediction\n\n01.50, 2e0 ,4\n"),
        ("\ufeffx1,x2\n1,2\n", "\ufeffx1,x2,prediction\n1,2,3\n"),
        ("\ufeff\nx1,x2\n1,2\n", "\ufeff\nx1,x2,prediction\n1,2,3\n"),
        ('x1,x2,n\n1,2,"a, ""b""\n\nc"\n4,5,\n', 'x1,x2,n,prediction\n1,2,"a, ""b""\n\nc",3\n4,5,,9\n'),
        ('n,x1,x2\n5" pipe,1,2\n"6""\r\n",4,"5"\n', 'n,x1,x2,prediction\n5" pipe,1,2,3\n"6""\r\n",4,"5",9\n'),
        ('\ufeff"x1","x2"\r\n"1",2\r\n\r\n4,5', '\ufeff"x1","x2",prediction\r\n"1",2,3\r\n\r\n4,5,9'),
        ('\r\nx1,x2\n1,"2"\n9007199254740992,1\n\n', '\r\nx1,x2,prediction\n1,"2",3\n9007199254740992,1,1.8014399e+16\n\n'),
        (",x1,n,x2,n,\n1,1,,2,,\n", ",x1,n,x2,n,,prediction\n1,1,,2,,,3\n"),
        ("x1,x2,n\n1,2,=A1 \x00\t'\n", "x1,x2,n,prediction\n1,2,=A1 \x00\t',3\n"),
    ],
    ids=[
        "plain",
        "order",
        "crlf",
        "cr",
        "blank",
        "bom",
        "bom-blank",
        "quoted",
        "stray",
        "quoted-bom",
        "slow",
        "unnamed",
        "odd",
    ],
)
@pytest.mark.parametrize("block", [1 << 20, 3, 1])
def test_the_text_stays_as_it_was(content: str, expected: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_text, "TEXT_BYTES", block)
    if '"' not in content and block > 1:  # a byte order mark is looked for in the first block
        monkeypatch.setattr(prediction, "RowTexts", None)  # what is slower is not needed
    assert predicted(content).decode() == expected


def test_text_that_is_not_utf8_stays() -> None:
    content = "x1,x2,ort\n1,2,Köln\n".encode("latin-1")
    assert predicted(content) == b"x1,x2,ort,prediction\n1,2,K\xf6ln,3\n"
    assert predicted(content + b'1,2,"K\xf6ln"\n').endswith(b'ln,3\n1,2,"K\xf6ln",3\n')


@pytest.mark.parametrize("separator", [";", "\t", "|", " "])
def test_another_separator_stands_before_the_prediction_too(separator: str) -> None:
    content = "x1,n,x2\n1,n,2\n".replace(",", separator)
    assert predicted(content, separator=separator).decode() == "x1,n,x2,prediction\n1,n,2,3\n".replace(",", separator)


def trained_on(**form: Any) -> tuple[Any, ModelDescription]:
    """Return the model of `line`, as trained on a CSV of another format."""
    model, description = line()
    names = ["x1", "x2"] if form.get("header", True) else ["column1", "column2"]
    return model, description.model_copy(update={"columns": [Number(name=name) for name in names], "format": form})


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ({"separator": ";", "decimal": ","}, "x1;x2\n1,25;2\n", "x1;x2;prediction\n1,25;2;3,5\n"),
        ({"thousands": ","}, 'x1,x2\n"1,000",2\n', 'x1,x2,prediction\n"1,000",2,2001\n'),
        ({"separator": " "}, "\t x1  x2\n 1 2  \n  \n 4\t5\n", "\t x1  x2 prediction\n 1 2   3\n  \n 4\t5 9\n"),
        ({"header": False}, "1,2\n4,5\n", "1,2,3\n4,5,9\n"),
        ({"comment": "#"}, "# a\nx1,x2\n#b\n1,2\n# c", "# a\nx1,x2,prediction\n#b\n1,2,3\n# c"),
        ({"encoding": "latin-1"}, "x1,x2,größe\n1,2,ü\n", "x1,x2,größe,prediction\n1,2,ü,3\n"),
        ({"encoding": "cp1252", "comment": "#"}, "x1,x2,€\n1,2,ü\n", "x1,x2,€,prediction\n1,2,ü,3\n"),
        ({"encoding": "utf-16"}, 'x1,x2,€\n1,2,"ü\n"\n', 'x1,x2,€,prediction\n1,2,"ü\n",3\n'),
        ({"encoding": "utf-16-be"}, "\ufeffx1,x2,€\n1,2,ਊ\n", "\ufeffx1,x2,€,prediction\n1,2,ਊ,3\n"),
    ],
    ids=["decimal", "thousands", "blanks", "header", "comment", "latin-1", "cp1252", "utf-16", "utf-16-be"],
)
def test_a_csv_is_read_and_written_in_the_format_of_the_one_that_the_model_was_trained_on(
    form: dict[str, Any], content: str, expected: str
) -> None:
    encoding = form.get("encoding", "utf-8")
    assert predicted(content.encode(encoding), trained_on(**form)) == expected.encode(encoding)


def test_what_does_not_go_with_the_models_format_is_refused() -> None:
    german = trained_on(separator=";", decimal=",")
    assert refusal("x1,x2\n1,2\n", german, separator=",") == (
        "--separator ',': beside the format of the CSV that the model was trained on, decimal: found ',', "
        "allowed: another character than format.separator"
    )
    assert refusal("1,2\n", trained_on(header=False), column="y") == (
        "--column: found 'y', allowed: none for a CSV without a header"
    )
    assert refusal("x1,x2,€\n1,2,3\n", trained_on(encoding="latin-1"), column="€") == (
        "--column: found '€', allowed: text in latin-1"
    )


@pytest.mark.parametrize(
    ("column", "cell"),
    [("y hat", "y hat"), ("价格", "价格"), ('a "b"', '"a ""b"""'), ("a,b", '"a,b"'), ("a\nb", '"a\nb"'), ("a;b", "a;b")],
)
def test_the_column_has_the_name_that_is_asked_for(column: str, cell: str) -> None:
    written = predicted("x1,prediction,x2\n1,7,2\n", column=column).decode()
    assert written == f"x1,prediction,x2,{cell}\n1,7,2,3\n"
    assert next(csv.reader(io.StringIO(written))) == ["x1", "prediction", "x2", column]


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (
            "x1",
            "in.csv: line 1, column 'x1': found the name of the column to be written, allowed: another one by --column NAME",
        ),
        (" ", "--column: found ' ', allowed: a name"),
        ("\udcff", r"--column: found '\udcff', allowed: text in utf-8"),
    ],
)
def test_a_name_that_a_column_cannot_have_is_refused(column: str, fault: str) -> None:
    assert refusal("x1,x2\n1,2\n", column=column) == fault


def test_a_feature_that_is_called_prediction_can_be_predicted_from() -> None:
    model, description = line()
    renamed = model, description.model_copy(update={"columns": [Number(name="prediction"), Number(name="x2")]})
    assert predicted("x2,prediction\n2,1\n", renamed, column="y").decode() == "x2,prediction,y\n2,1,3\n"


@pytest.mark.parametrize("quotes", ["", '"'])
def test_rows_of_several_blocks_each_get_their_own_prediction(quotes: str) -> None:
    rows = 2 * MODEL_ROWS + 5
    notes = [f"{quotes}{'ab' * (row * row % 300)}{quotes}" for row in range(rows)]
    lines = [f"{note},{row},0" for row, note in enumerate(notes)]
    expected = [f"{text},{2 * row + 1}" for row, text in enumerate(lines)]

    written = predicted("\n".join(["n,x1,x2", *lines, ""])).decode()

    assert written.splitlines() == ["n,x1,x2,prediction", *expected]


@pytest.mark.parametrize("compress", [gzip.compress, lambda content: bytes(pa.compress(content, "zstd"))])
def test_a_compressed_csv_gives_the_same(compress: Any) -> None:
    content = numbered_csv(60_000, features=2).encode()
    assert predicted(compress(content)) == predicted(content)


# --- the numbers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [UNSCALED, SCALED], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("settings", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize("last", ["", "1e20,1e20,z\n", '1,2,"z"\n', "9007199254740992,2,z\n"])
def test_predictions_read_back_are_the_models_own_bits(
    settings: ModelSettings, scale: ScaleSettings, dtype: Dtype, last: str
) -> None:
    model = save(settings, scale, dtype)
    values = np.random.default_rng(0).normal(0, (1, 1e3), (MODEL_ROWS - bool(last), 2)).astype(dtype)
    text = "x2,x1,n\n" + "".join(f"{b!r},{a!r},z\n" for a, b in values.astype(float).tolist()) + last

    rows = list(csv.DictReader(io.StringIO(predicted(text, model).decode())))

    features = np.array([[float(row["x1"]), float(row["x2"])] for row in rows]).astype(dtype)
    with torch.no_grad():
        expected = model[0](torch.from_numpy(features))[:, 0].numpy()
    found = np.array([float(row["prediction"]) for row in rows]).astype(dtype)
    assert found.tobytes() == expected.tobytes()
    assert np.unique(found).size > 100


@pytest.mark.parametrize("text", ["7.038531e-26", "1.1754944e-38", "3.4028235e38", "-1e-45", "-0"])
def test_numbers_between_two_float32_read_back_by_way_of_float64_too(text: str) -> None:
    near = np.float32(text)
    numbers = np.array([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1))])
    assert (
        np.array([float(cell) for cell in prediction._number_texts(numbers).to_pylist()]).astype("f4").tobytes()
        == numbers.tobytes()
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", [LINEAR, MLP], ids=["linear", "mlp"])
def test_a_prediction_depends_neither_on_other_rows_nor_on_their_number(settings: ModelSettings, dtype: Dtype) -> None:
    model = save(settings, SCALED, dtype, features=13)  # a width at which matrix products round by the number of rows
    values = np.random.default_rng(1).normal(0, 1, (MODEL_ROWS + 100, 13)).astype(dtype)

    def column(rows: Any) -> list[bytes]:
        header = ",".join(f"x{number}" for number in range(1, 14))
        text = "\n".join([header, *(",".join(map(repr, row)) for row in rows.astype(float).tolist())])
        return [cells.rpartition(b",")[2] for cells in predicted(text, model).splitlines()[1:]]

    whole, others = column(values), values.copy()
    others[1::2] *= 1e6
    assert column(values[:1]) == whole[:1]
    assert column(values[:50]) == whole[:50]
    assert column(others)[::2] == whole[::2]


def test_a_prediction_beyond_the_dtype_is_refused_with_its_line() -> None:
    huge = line(weight=1e30)
    assert refusal('x1,x2,n\n1,2,"a\nb"\n1e20,1,n\n', huge) == (
        "in.csv: line 4: found features whose prediction is inf, allowed: a finite float32"
    )
    assert refusal("x1,x2\nz,2\n1e20,1\n", huge) == "in.csv: line 2, column 'x1': found 'z', allowed: a number"


# --- what is refused


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ("x1,x2\n", "line 1: found no rows below the header, allowed: at least one"),
        ("\nx1,y\n1,2\n", "line 2: found no column 'x2' (a feature of the model), allowed: 'x1', 'y'"),
        ("x1;x2\n1;2\n", "line 1: found no column 'x1' (a feature of the model), allowed: 'x1;x2' (is --separator ';'?)"),
        (
            "x1,prediction,x2\n1,2,3\n",
            "line 1, column 'prediction': found the name of the column to be written, allowed: another one by --column NAME",
        ),
        ("x1,x2\n1,2\n1,x\n", "line 3, column 'x2': found 'x', allowed: a number"),
        ('n,x1,x2\n"a\nb",1,2\n,,inf\n', f"line 4, column 'x1': found an empty cell, {MISSING}\n"
         "in.csv: line 4, column 'x2': found 'inf', allowed: a finite number"),
        ("x1,x2\n1,1e39\n", "line 2, column 'x2': found '1e39', allowed: a number within float32's range, "
         "or a model trained with prepare.dtype: float64"),
        ("x1,x2\n1,2\n1,16777217\n", "line 3, column 'x2': found '16777217', allowed: an integer that float32 holds, such as "
         "each up to 2^24 (16777216), or a model trained with prepare.dtype: float64"),
        ("x1,x2\n1,2\n1,2,3\n", "line 3: found 3 cells, allowed: 2, as in the header"),
        ('x1,x2,n\n1,2,"a\n1,2,b\n', "line 2, column 'n': found a quote that is not closed, allowed: a closing quote"),
        ("x1,x2\n" + "1,2\n" * 30_000 + "1,\n", f"line 30002, column 'x2': found an empty cell, {MISSING}"),
        ("x1,x2\n" + "1,b\n" * 30, "line 2, column 'x2': found 'b', allowed: a number (30 bad cells in the column)"),
    ],
)  # fmt: skip
def test_a_wrong_csv_is_refused_as_by_prepare(content: str, fault: str) -> None:
    assert refusal(content) == f"in.csv: {fault}"


@pytest.mark.parametrize("other", ["in.csv", "./in.csv", "link.csv", "hard.csv"])
def test_the_csv_is_not_written_over(other: str) -> None:
    Path("in.csv").write_text(NUMBERED)
    Path("link.csv").symlink_to("in.csv")
    os.link("in.csv", "hard.csv")
    with pytest.raises(TableError, match=r": is the CSV to be read, allowed: another file$"):
        predict(*line(), Path("in.csv"), Path(other))
    assert Path("in.csv").read_text() == NUMBERED


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "found a named pipe, allowed: a regular file"),
        (lambda path: path.symlink_to("elsewhere"), "found a symbolic link, allowed: a regular file"),
    ],
    ids=["folder", "pipe", "link"],
)
def test_what_is_no_regular_file_is_not_written_over(make: Callable[[Path], None], fault: str) -> None:
    Path("in.csv").write_text(NUMBERED)
    make(Path("out.csv"))
    before = Path("out.csv").lstat().st_ino
    with pytest.raises(OSError, match=fault) as caught:
        predict(*line(), Path("in.csv"), Path("out.csv"))
    assert caught.value.filename == "out.csv"
    assert Path("out.csv").lstat().st_ino == before
    assert not Path("elsewhere").exists()


def test_a_missing_csv_is_refused() -> None:
    with pytest.raises(TableError, match=r"^no.csv: cannot be read: No such file or directory$"):
        predict(*line(), Path("no.csv"), Path("out.csv"))


def test_a_csv_that_changes_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = prediction._number_texts

    def write_and_change(*arguments: Any) -> Any:
        os.utime("in.csv", (0, 0))
        return texts(*arguments)

    monkeypatch.setattr(prediction, "_number_texts", write_and_change)
    assert refusal(NUMBERED) == "in.csv: changed while it was read; run again"


def test_a_run_that_is_killed_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> Iterator[Any]:
        yield np.zeros(5, np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "predictions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predicted(NUMBERED)
    assert {path.name for path in Path().iterdir() if "out" in path.name} == set()


# --- the model


def test_a_damaged_or_missing_model_is_refused() -> None:
    with pytest.raises(TruefitError, match=r"^nothing/model.json: cannot be read: No such file or directory$"):
        open_model(Path("nothing"))
    save()
    other = untrained(prepare(Path(), NUMBERED), seed=9)
    content = Path("model/model.pt").read_bytes()
    Path("model/model.pt").write_bytes(content[:-30])
    with pytest.raises(TruefitError, match=r"^model/model.pt: damaged"):
        open_model(Path("model"))
    torch.save(other.state_dict(), "model/model.pt")
    with pytest.raises(
        TruefitError, match=r"^model/model.pt: its tensors are not those that model/model.json was written for$"
    ):
        open_model(Path("model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose MLflow store is opened once, since creating one takes seconds."""
    return tmp_path_factory.mktemp("root")


def run_with(root: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], artifacts: dict[str, bytes]) -> Any:
    """Return what is read as the model of a run with these tags and artifacts."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    store, origin = Store(), Origin({}, tags, prepare(Path(), NUMBERED), artifacts)
    with store.training_run(TrackSettings(), "name", os.urandom(32).hex(), lambda: origin) as run:
        pass
    return read_model(store, find(store, run.run_id, "truefit"))


def recorded() -> tuple[dict[str, str], dict[str, bytes]]:
    """Return tags and artifacts of a run that kept its final state, as stage train records them."""
    save(MLP, SCALED)
    other = untrained(prepare(Path(), NUMBERED), MLP, SCALED, seed=9).state_dict()
    final, description = Path("model/model.pt").read_bytes(), Path("model/model.json").read_bytes()
    names = ["state_dict/best.pt", "state_dict/final.pt", "state_dict/model.json"]
    digest = open_model(Path("model"))[1].state_dict_sha256
    return {DIGEST_TAG: digest}, dict(zip(names, [state_dict_bytes(other), final, description], strict=True))


def test_the_model_of_a_run_is_the_state_that_its_tag_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = run_with(root, monkeypatch, *recorded())
    assert predicted(NUMBERED, model) == predicted(NUMBERED, open_model(Path("model")))


class Canary:
    """Unpickled, creates the file `sprung`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_anyones_run_is_predicted_from_since_nothing_of_it_is_executed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 17, fault 1."""
    tags, artifacts = recorded()
    trap = b"from pathlib import Path\nPath('sprung').touch()\n"
    planted = {
        "model/MLmodel": b"flavors:\n  python_function:\n    loader_module: evil\n    code: code\n",
        "model/code/evil.py": trap,
        "model/python_model.pkl": pickle.dumps(Canary()),
        "state_dict/evil.py": trap,
        "state_dict/data.pkl": pickle.dumps(Canary()),
        "record/diff.patch": b"--- /dev/null\n+++ b/sprung\n@@ -0,0 +1 @@\n+1\n",
    }
    monkeypatch.setenv("LOGNAME", "mallory")
    model = run_with(root, monkeypatch, {**tags, "git.root": "f" * 40, "git.commit": "--all"}, {**artifacts, **planted})
    monkeypatch.setenv("LOGNAME", "alice")
    assert predicted(NUMBERED, model) == predicted(NUMBERED, open_model(Path("model")))
    best, final = "state_dict/best.pt", "state_dict/final.pt"
    with pytest.raises(TruefitError, match=r"damaged, or not a state_dict"):
        run_with(root, monkeypatch, tags, {**artifacts, best: pickle.dumps(Canary()), final: pickle.dumps(Canary())})
    assert not list(Path().rglob("sprung"))
    assert not list(root.rglob("sprung"))
    pickle.loads(pickle.dumps(Canary()))
    assert Path("sprung").exists()  # it would have


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("model.json", None, "its artifact state_dict/model.json is missing, without which its model cannot be rebuilt"),
        ("final.pt", None, "its artifact state_dict/final.pt is missing, without which its model cannot be rebuilt"),
        ("model.json", b"{", "its artifact state_dict/model.json: damaged: Invalid JSON: EOF while parsing an object at line"),
        ("final.pt", b"PK", "its artifact state_dict/final.pt: damaged, or not a state_dict"),
        ("final.pt", "best.pt", "neither of its states has the digest in its tag state_dict.sha256"),
        ("tag", None, "it has no tag state_dict.sha256: no training ended in it"),
    ],
)
def test_a_run_whose_model_is_not_whole_is_refused(
    name: str, content: bytes | str | None, fault: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags, artifacts = recorded()
    if isinstance(content, str):
        content = artifacts[f"state_dict/{content}"]
    if name == "tag":
        tags.clear()
    elif content is None:
        del artifacts[f"state_dict/{name}"]
    else:
        artifacts[f"state_dict/{name}"] = content
    with pytest.raises(TruefitError) as caught:
        run_with(root, monkeypatch, tags, artifacts)
    assert re.match(rf"run [0-9a-f]{{32}}: {re.escape(fault)}", str(caught.value))


# --- memory


IMPORTS = """
from truefit.model.files import open_model
from truefit.cli.prediction import predict
"""


def test_memory_does_not_grow_with_the_rows() -> None:
    save()
    works = []
    for rows in (1_000_000, 4_000_000):
        Path(f"{rows}.csv").write_bytes(b"x1,x2,note\n" + b"1,2,something or other\n" * rows)
        works.append(f"predict(*open_model(Path('model')), Path('{rows}.csv'), Path('out.csv'))")
    few, many = peak_memories(IMPORTS, works, Path())
    # Between the two, the CSV grows by 69 MB and what is written by more.
    assert many - few < 40
