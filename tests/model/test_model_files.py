"""A model on the disk: it comes back to the bit, and what is not one is refused."""

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import SCALED, UNSCALED, same_bits, save_untrained, untrained, write_scaled
from torch import Tensor

from truefit.core.errors import TruefitError
from truefit.data.table import Dtype, Table
from truefit.model.files import load_model, read_state_dict, state_dict_bytes, state_dict_digest
from truefit.model.models import ModelSettings
from truefit.model.scaling import ScaleSettings

LINEAR = ModelSettings()
SMALL_MLP = ModelSettings(name="mlp", hidden=(5, 4))


# The digest.


ANEW = "`dvc repro --force train` writes it anew"


def digest(**tensors_by_name: Tensor) -> str:
    return state_dict_digest(tensors_by_name)


def test_the_digest_is_that_of_names_dtypes_shapes_and_bytes() -> None:
    # Fixed for good, because recorded runs are found by it.
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor(3.0, dtype=torch.float64)}
    content = b"weight torch.float32 [1, 2]\n" + struct.pack("<2f", 1, 2) + b"bias torch.float64 []\n" + struct.pack("<d", 3)
    assert state_dict_digest(state) == hashlib.sha256(content).hexdigest()


def test_the_digest_changes_with_a_name_a_dtype_a_shape_and_a_single_bit() -> None:
    values = torch.tensor([1.0, 2.0])
    last_bit = torch.tensor([1.0, np.nextafter(np.float32(2), np.float32(3))])
    negative_zero = (torch.tensor([0.0]), torch.tensor([-0.0]))
    found = {
        digest(w=values),
        digest(v=values),
        digest(w=values.double()),
        digest(w=values.view(torch.int32)),
        digest(w=values[None]),
        digest(w=values[:, None]),
        digest(w=last_bit),
        digest(w=values.flip(0)),
        digest(w=values, b=values),
        *(digest(w=zero) for zero in negative_zero),
    }
    assert len(found) == 11


def test_the_digest_is_the_same_whatever_the_memory_or_the_file(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3)
    expected = digest(w=values)
    assert digest(w=values.T.contiguous().T) == expected
    assert digest(w=torch.nn.Parameter(values)) == expected
    for name in ("a.pt", "b.pt"):
        torch.save({"w": values.clone()}, tmp_path / name)
        assert state_dict_digest(read_state_dict((tmp_path / name).read_bytes())) == expected


# A model on the disk.


def save(
    folder: Path, settings: ModelSettings = LINEAR, *, scale: ScaleSettings = UNSCALED, dtype: Dtype = "float64"
) -> Table:
    """Prepare a table in folder/table and save a model for it in folder/model."""
    table = write_scaled(folder / "table", dtype=dtype)
    save_untrained(folder / "model", table, settings, scale)
    return table


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [UNSCALED, SCALED, ScaleSettings(features="none", target="log")], ids=str)
@pytest.mark.parametrize(
    "settings", [LINEAR, ModelSettings(name="mlp", hidden=(5, 4), activation="tanh", dropout=0.5)], ids=["linear", "mlp"]
)
def test_a_saved_model_comes_back_to_the_bit(
    tmp_path: Path, settings: ModelSettings, scale: ScaleSettings, dtype: Dtype
) -> None:
    table = save(tmp_path, settings, scale=scale, dtype=dtype)
    saved = untrained(table, settings, scale)
    model, description = load_model(tmp_path / "model", table)
    assert type(model.body) is type(saved.body)
    assert same_bits(dict(model.state_dict()), dict(saved.state_dict()))
    assert not any(module.training for module in model.modules())
    features = torch.ones(3, 2, dtype=getattr(torch, dtype))
    assert torch.equal(model(features), saved.eval()(features))
    assert description.model == settings
    assert (description.scale, description.dtype) == (scale, dtype)
    assert ([column.name for column in description.columns], description.target) == (["x1", "x2"], "y")
    assert description.state_dict_sha256 == state_dict_digest(saved.state_dict())


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(tmp_path / name, SMALL_MLP, scale=SCALED)
    for name in ("model.pt", "model.json"):
        assert (tmp_path / "one/model" / name).read_bytes() == (tmp_path / "other/model" / name).read_bytes()
    assert {path.name for path in (tmp_path / "one/model").iterdir()} == {"model.pt", "model.json"}


def test_a_state_dicts_bytes_are_torchs_own_format(tmp_path: Path) -> None:
    state = dict(untrained(write_scaled(tmp_path), SMALL_MLP, SCALED).state_dict())
    (tmp_path / "state.pt").write_bytes(state_dict_bytes(state))
    assert same_bits(torch.load(tmp_path / "state.pt", weights_only=True), state)


# What cannot be loaded.


def refusal(folder: Path, table: Table) -> str:
    """Return the text with which the model in folder/model is refused."""
    with pytest.raises(TruefitError) as error:
        load_model(folder / "model", table)
    return str(error.value)


def test_a_missing_model_json_is_refused(tmp_path: Path) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.json"
    path.unlink()
    assert refusal(tmp_path, table) == f"{path}: cannot be read: No such file or directory; `dvc repro train` writes it"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"features": "none"', '"features": "log"', "scale.features: Input should be 'standard' or 'none'"),
        ('"linear"', '"forest"', "model.name: Input should be 'linear' or 'mlp'"),
        (None, '{"model": ', "Invalid JSON: EOF while parsing a value at line 1 column 10"),
    ],
    ids=["impossible scale", "impossible model", "cut off"],
)
def test_a_damaged_model_json_is_refused_naming_the_key(tmp_path: Path, old: str | None, new: str, fault: str) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.json"
    path.write_text(new if old is None else path.read_text().replace(old, new))
    assert refusal(tmp_path, table) == f"{path}: damaged: {fault}; `dvc repro --force train` writes it anew"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"target": None}, "found no key target"),
        ({"target": None, "aim": "y"}, "found the key aim"),
        ({"model": {"name": "linear", "degree": 2}}, "found the key model.degree"),
    ],
    ids=["a key less", "another key", "a key more, further in"],
)
def test_a_model_json_of_another_version_is_refused_as_such(tmp_path: Path, changed: dict[str, Any], found: str) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.json"
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    assert refusal(tmp_path, table) == (
        f"{path}: written by another version of truefit: {found}; "
        f"train again, or predict with the code at the commit of its run; {ANEW}"
    )


def test_a_model_json_that_describes_another_model_than_the_tensors_is_refused(tmp_path: Path) -> None:
    table = save(tmp_path, SMALL_MLP)
    path = tmp_path / "model/model.json"
    path.write_text(path.read_text().replace("5,", "6,"))
    assert (
        refusal(tmp_path, table)
        == f"{tmp_path / 'model/model.pt'}: its tensors do not fit the model that {path} describes; {ANEW}"
    )


def test_a_missing_model_pt_is_refused(tmp_path: Path) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    path.unlink()
    assert refusal(tmp_path, table) == f"{path}: cannot be read: No such file or directory; `dvc repro train` writes it"


UNREADABLE = "damaged, or not a state_dict; `dvc repro --force train` writes it anew"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_model_pt_is_refused(tmp_path: Path, share: float) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(tmp_path, table) == f"{path}: {UNREADABLE}"


@pytest.mark.parametrize(
    "content", [b"model", b"x = 1\n", b"epoch,loss\n1,0.5\n", b"0", b"h\x05.", b"\x80\x02}q\x00.", bytes(range(256))], ids=repr
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    path.write_bytes(content)
    assert refusal(tmp_path, table) == f"{path}: {UNREADABLE}"


def test_a_model_pt_with_any_byte_changed_is_refused_or_the_same(tmp_path: Path) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    content = path.read_bytes()
    expected = read_state_dict(content)
    refused = 0
    for at in range(0, len(content), 11):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            model, _ = load_model(tmp_path / "model", table)
        except TruefitError:
            refused += 1
        else:
            assert same_bits(dict(model.state_dict()), expected)
    assert refused > 20


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path: Path) -> None:
    table = save(tmp_path)
    path, made = tmp_path / "model/model.pt", tmp_path / "made"
    torch.save({"body.weight": Malicious(made)}, path)
    assert refusal(tmp_path, table) == f"{path}: {UNREADABLE}"
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # so the file would have run its code


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({"body.weight": torch.zeros(1), "epoch": 3}, "'epoch': int"),
    ],
    ids=["list", "tensor", "number"],
)
def test_a_model_pt_that_is_not_a_dictionary_of_tensors_is_refused(tmp_path: Path, content: object, found: str) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    torch.save(content, path)
    assert (
        refusal(tmp_path, table)
        == f"{path}: found {found}, allowed: a dictionary of tensors; `dvc repro --force train` writes it anew"
    )


def test_tensors_other_than_those_described_are_refused(tmp_path: Path) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    other = untrained(table, seed=8)
    path.write_bytes(state_dict_bytes(other.state_dict()))
    assert (
        refusal(tmp_path, table)
        == f"{path}: its tensors are not those that {tmp_path / 'model/model.json'} was written for; {ANEW}"
    )


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    table = save(tmp_path)
    path = tmp_path / "model/model.pt"
    state = {name: tensor.to(torch.bfloat16) for name, tensor in read_state_dict(path.read_bytes()).items()}
    torch.save(state, path)
    assert (
        refusal(tmp_path, table)
        == f"{path}: its tensors are not those that {tmp_path / 'model/model.json'} was written for; {ANEW}"
    )


def test_a_model_of_other_columns_than_the_tables_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    other = write_scaled(tmp_path / "other", features=3)
    assert refusal(tmp_path, other) == (
        f"{tmp_path / 'model/model.json'}: trained on x1, x2, y, float64, found in the table: x1, x2, x3, y, float64"
    )


def test_a_model_of_another_dtype_than_the_tables_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    other = write_scaled(tmp_path / "other", dtype="float32")
    assert refusal(tmp_path, other) == (
        f"{tmp_path / 'model/model.json'}: trained on x1, x2, y, float64, found in the table: x1, x2, y, float32"
    )


def test_a_model_of_another_target_than_the_tables_is_refused(tmp_path: Path) -> None:
    table = save(tmp_path)
    assert refusal(tmp_path, table.model_copy(update={"target": "price"})) == (
        f"{tmp_path / 'model/model.json'}: trained on x1, x2, y, float64, found in the table: x1, x2, price, float64"
    )


def test_an_intact_archive_with_a_broken_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(state_dict_bytes({"weight": torch.ones(2)}))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for pickled in (b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02}q\x00K\x01K\x02s", b"\x80\x02]K\x01b."):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, pickled if name.endswith("data.pkl") else content)
        with pytest.raises(ValueError, match=r"^damaged, or not a state_dict"):
            read_state_dict(path.read_bytes())
