"""params.yaml damaged at random: each section loads with what the YAML says, or one line names the place and what is allowed.

With TRUEFIT_TORTURE=1 in the environment: more examples, other ones each time.
"""

import copy
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers_settings import PARAMS_YAML, SECTIONS
from helpers_torture import fuzz
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from truefit.core.config import Params
from truefit.core.errors import SettingsError

profile = fuzz(examples=60)

Place = tuple[str, ...]

GOOD_TEXT = PARAMS_YAML.read_text()
GOOD: dict[str, Any] = Params(PARAMS_YAML).values
TOKENS = [
    *("\t", "\n", "\r", " ", "  ", "'", '"', "{", "}", "[", "]", ",", ":", ": ", "- ", "? ", "#", "|", ">", "%", "@", "`"),
    *("\\", "&a ", "*a", "<<: *a", "--- ", "\n---\n", "\n...\n", "%YAML 1.1\n---\n", "~", "null", "true", "yes", "1_000"),
    *("!!python/object/apply:os.system [x]", "!!bool x", "!!int ''", "!!float x", "!!binary aGk=", "!!set {a}", "!!null x"),
    *("!!timestamp x", "!!omap [a: 1]", "!!str ", "!foo ", "2021-02-30", "2021-02-03", ".inf", "-.inf", ".nan", "1e999"),
    *("0o17", "0x1f", "9" * 5000, "[" * 40, "{a: " * 40, "&a [*a]", "&b {c: *b}"),
    *("\0", "\x07", "\x85", "\u2028", "\ufeff", "\ud800", "é", "😀"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.chdir(tmp_path_factory.mktemp("fuzz"))


def places(content: dict[str, Any], above: Place = ()) -> list[Place]:
    """Return the path of each key, sections and inner ones included."""
    found = []
    for key, value in content.items():
        found.append((*above, key))
        found += places(value, (*above, key)) if isinstance(value, dict) else []
    return found


PLACES = places(GOOD)
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["all", "torch", "mlp", "adam", "step", "cuda:0", "float64", "1e-3", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=2),
    max_leaves=4,
)
# Values that mean something somewhere, for combinations that do or do not go together.
CHOICES: dict[Place, list[Any]] = {
    ("generate", "low"): [-1.0, 2.0, 1e308],
    ("generate", "high"): [0.5, 3, -1e308],
    ("prepare", "features"): [["a"], ["a", "a"], []],
    ("prepare", "target"): ["a", "b"],
    ("prepare", "split", "column"): ["a", "b"],
    ("prepare", "split", "group"): ["a", "b"],
    ("prepare", "split", "order"): ["a", "b"],
    ("prepare", "split", "folds"): [3, 2, 10],
    ("prepare", "split", "fold"): [2, 3],
    ("prepare", "split", "train"): [0.5, 0.7, 1.0],
    ("prepare", "split", "test"): [0.2, 0.9],
    ("train", "engine"): ["numpy", "autograd", "torch", "compiled", "auto"],
    ("train", "device"): ["cpu", "cuda", "mps"],
    ("train", "scale", "features"): ["none", "log"],
    ("train", "scale", "target"): ["none", "log", "standard"],
    ("train", "model", "name"): ["mlp"],
    ("train", "model", "hidden"): [[4], [4, 0], [1.5], [10**12]],
    ("train", "model", "dropout"): [0.5, 1],
    ("train", "loss", "name"): ["l1", "huber"],
    ("train", "optimizer", "name"): ["adam", "adamw"],
    ("train", "optimizer", "momentum"): [0.9],
    ("train", "optimizer", "nesterov"): [True],
    ("train", "optimizer", "lr"): [1e-5, 1, 1e39],
    ("train", "schedule", "name"): ["constant", "step", "plateau"],
    ("train", "schedule", "gamma"): [0.5],
    ("train", "schedule", "min_lr"): [0.01, 1e-9],
    ("train", "early_stopping", "patience"): [1, 5],
    ("train", "early_stopping", "min_delta"): [0.1],
    ("train", "clip_norm"): [1.0],
    ("train", "batch_size"): ["all", 1, "some"],
    ("checkpoint", "epochs"): [1, 0],
    ("launch", "processes"): [2, 3, 4],
    ("launch", "hosts"): [2, 4],
    ("launch", "rendezvous"): ["127.0.0.1:29500", "127.0.0.1", "a:b", "[::1]:1"],
    ("launch", "restarts"): [1],
}


def write(content: Any) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False  # in flow style it writes `{:0: x}`, which it does not read
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def change(content: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return the part of `content` that holds the last key of `place`."""
    for key in place[:-1]:
        content = content[key]
    return content


def complete(values: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults with the values in their place."""
    return {
        key: complete(values[key], default) if isinstance(default, dict) and key in values else values.get(key, default)
        for key, default in defaults.items()
    }


def equal(found: Any, written: Any) -> bool:
    if isinstance(found, dict):
        return found.keys() == written.keys() and all(equal(found[key], written[key]) for key in found)
    if isinstance(found, tuple | list):
        return len(found) == len(written) and all(map(equal, found, written))
    return bool(found == (float(written) if isinstance(found, float) else written))  # 2**53 + 1 is no float64


def outcome(section: str, content: dict[str, Any]) -> str | None:
    """Load a section: return None where it has the values of `content`, or the error's line, whose form is checked."""
    try:
        loaded = Params().section(section, SECTIONS[section])
    except SettingsError as error:
        return well_formed(str(error))
    model = SECTIONS[section]
    assert equal(loaded.model_dump(), complete(content[section], model().model_dump()))
    return None


def well_formed(line: str) -> str:
    assert len(line.splitlines()) == 1
    assert len(line) < 1000
    syntax = (
        r"line \d+, column \d+: .+|found values nested too deeply to be read, allowed: .+|found .+, allowed: the sections .+"
    )
    value = r".+: (found .+, allowed: .+|(unknown key|not found), allowed: .+)( \(and \d+ more\))?"
    assert re.fullmatch(rf"params\.yaml: ({syntax}|{value})", line), line
    return line


@profile
@given(st.sampled_from(PLACES), junk)
def test_a_value_that_is_loaded_is_the_one_written_or_else_its_key_is_named(place: Place, value: Any) -> None:
    content = copy.deepcopy(GOOD)
    default = change(content, place)[place[-1]]
    change(content, place)[place[-1]] = value
    write(content)
    line = outcome(place[0], content)

    if line is not None:
        # A value of the right kind may be ruled out by another key of its section, which is named then.
        same_kind = type(value) is type(default) or default is None or {type(value), type(default)} == {int, float}
        at = place if not same_kind or value is None else place[:1]
        assert line.startswith(f"params.yaml: {'.'.join(at)}")
    other = "evaluate" if place[0] == "track" else "track"
    elsewhere = outcome(other, content)  # where no JSON could hold the value, no section loads
    assert elsewhere is None or elsewhere == line


@profile
@given(st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=5, unique=True), st.data())
def test_a_combination_loads_as_written_or_one_of_its_keys_is_named(chosen: list[Place], data: st.DataObject) -> None:
    content = copy.deepcopy(GOOD)
    for place in chosen:
        change(content, place)[place[-1]] = data.draw(st.sampled_from(CHOICES[place]))
    write(content)
    for section in {place[0] for place in chosen}:
        line = outcome(section, content)
        assert line is None or line.startswith(f"params.yaml: {section}.")


@profile
@given(st.sampled_from(PLACES), st.data())
def test_a_misspelt_key_is_named_with_the_nearest_known_one(place: Place, data: st.DataObject) -> None:
    content = copy.deepcopy(GOOD)
    *_, key = place
    position = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcxyz_-9 "))
    ways = [
        key[:position] + key[position + 1 :],
        key[:position] + letter + key[position:],
        key[:position] + letter + key[position + 1 :],
    ]
    wrong = data.draw(st.sampled_from(ways))
    holder = change(content, place)
    if wrong in holder or wrong in ("gamma", "factor", "patience"):
        return
    holder[wrong] = holder.pop(key)
    write(content)
    line = outcome(place[0], content)

    assert line is not None
    assert line.startswith(
        f"params.yaml: {'.'.join((*place[:-1], wrong if wrong.isprintable() else repr(wrong)))}: unknown key, allowed: "
    )
    if len(key) >= 4:
        assert line.endswith(f"; did you mean {key}?")  # fmt: skip


@profile
@given(st.sampled_from(PLACES))
def test_a_deleted_key_has_its_default_and_a_deleted_section_is_named(place: Place) -> None:
    content = copy.deepcopy(GOOD)
    del change(content, place)[place[-1]]
    write(content)
    line = outcome(place[0], content)

    if len(place) == 1:
        assert line is not None
        assert line.startswith(f"params.yaml: {place[0]}: not found, allowed: a section with ")
    else:
        assert line is None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """params.yaml after a few cuts, insertions, repetitions and exchanges of its text."""
    text = GOOD_TEXT
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        lines = text.splitlines(keepends=True)
        number = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["insert", "cut", "replace", "repeat line", "drop line", "indent", "value"])):
            case "insert":
                text = text[:start] + draw(st.sampled_from(TOKENS)) + text[start:]
            case "cut":
                text = text[:start] + text[end:]
            case "replace":
                text = text[:start] + draw(st.sampled_from(TOKENS)) + text[end:]
            case "repeat line":
                text = "".join([*lines[:number], lines[number], *lines[number:]])
            case "drop line":
                text = "".join(lines[:number] + lines[number + 1 :])
            case "indent":
                text = "".join([*lines[:number], draw(st.sampled_from([" ", "   ", "\t"])), *lines[number:]])
            case _:
                key, colon, _ = lines[number].partition(":")
                text = "".join([*lines[:number], f"{key}{colon} {draw(st.sampled_from(TOKENS))}\n", *lines[number + 1 :]])
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        content = content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :]
    return content


# An anchor may be used twice in YAML; ruamel reads it so, and warns.
@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@profile
@given(damaged())
def test_damaged_text_loads_as_the_yaml_that_it_is_or_is_refused_with_its_place(content: bytes) -> None:
    Path("params.yaml").write_bytes(content)
    try:
        params = Params().values
    except SettingsError as error:
        well_formed(str(error))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert params == YAML(typ="safe", pure=True).load(content.decode())
    for section in set(GOOD) & set(params):
        outcome(section, params)
