import itertools
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers_settings import PARAMS_YAML, SECTIONS

from truefit.core.config import Params, Settings, flatten
from truefit.core.errors import SettingsError
from truefit.data.generating import GenerateSettings
from truefit.evaluation.report import EvaluateSettings
from truefit.ingest.prepare import PrepareSettings
from truefit.model.models import ModelSettings
from truefit.training.losses import LossSettings
from truefit.training.optimizers import OptimizerSettings
from truefit.training.settings import TrainSettings


def names_of(settings: type[Settings]) -> str:
    """Return the choices of a `name`, as an error lists them."""
    *names, last = map(repr, get_args(settings.model_fields["name"].annotation))
    return f"{', '.join(names)} or {last}"


# What DESIGN.md, "Names that others rely on", fixes.
DEFAULTS: dict[str, Any] = {
    "generate": {
        "rows": 1000,
        "seed": 42,
        "intercept": 1.0,
        "coefficients": [2.0],
        "low": 0.0,
        "high": 1.0,
        "noise_std": 0.1,
    },
    "prepare": {
        "csv": "data/synthetic.csv",
        "parts": "*",
        "format": {
            "separator": ",",
            "decimal": ".",
            "thousands": None,
            "encoding": "utf-8",
            "header": True,
            "comment": None,
            "missing": ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"],
        },
        "features": None,
        "exclude": [],
        "target": None,
        "columns": {},
        "missing": {"features": "refuse", "target": "refuse"},
        "weight": None,
        "split": {
            "train": 0.8,
            "validation": 0.1,
            "test": 0.1,
            "seed": 42,
            "column": None,
            "group": None,
            "order": None,
            "folds": None,
            "fold": 0,
        },
        "dtype": "float32",
    },
    "train": {
        "engine": "torch",
        "device": "auto",
        "seed": 42,
        "threads": 1,
        "scale": {"features": "standard", "target": "standard"},
        "model": {"name": "linear", "hidden": [], "activation": "relu", "dropout": 0.0},
        "loss": {"name": "mse", "reduction": "mean", "delta": 1.0},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "schedule": {"name": "cosine"},
        "batch_size": 16,
        "shards": 1,
        "shuffle": "full",
        "epochs": 50,
        "clip_norm": None,
        "early_stopping": {"patience": None, "min_delta": 0.0},
        "compile": {"batches": 16, "cpp_wrapper": True},
    },
    "evaluate": {"sample": 1000},
    "track": {"experiment": "truefit", "run_name": None, "largest_file_mb": 10.0, "log_model": True},
    "checkpoint": {"epochs": None, "seconds": 10.0},
    "launch": {"processes": 1, "hosts": 1, "rendezvous": None, "timeout": 60.0, "restarts": 0},
}

GENERATE_KEYS = "rows, seed, intercept, coefficients, low, high, noise_std"
TRAIN_KEYS = (
    "engine, device, seed, threads, scale, model, loss, optimizer, schedule, batch_size, shards, shuffle, epochs, "
    "clip_norm, early_stopping, compile"
)
SECTION_NAMES = "generate, prepare, train, evaluate, track, checkpoint, launch"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(section: str, content: str | bytes) -> str:
    """Return the text of the error that the section of a params.yaml with this content raises."""
    Path("params.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as caught:
        Params().section(section, SECTIONS[section])
    return str(caught.value)


def load(section: str, values: str) -> Any:
    Path("params.yaml").write_text(f"{section}: {values}\n")
    return Params().section(section, SECTIONS[section])


# --- params.yaml as a whole


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("generat: {}\n", f"generat: unknown key, allowed: {SECTION_NAMES}; did you mean generate?"),
        ("generate: {}\nmodels: {}\n", f"models: unknown key, allowed: {SECTION_NAMES}"),
        ("1: {}\n", f"1: unknown key, allowed: {SECTION_NAMES}"),
        ("train: {}\n", f"generate: not found, allowed: a section with {GENERATE_KEYS}"),
        ("", f"found null, allowed: the sections {SECTION_NAMES}"),
        ("- generate\n", f"found ['generate'], allowed: the sections {SECTION_NAMES}"),
        ("generate\n", f"found 'generate', allowed: the sections {SECTION_NAMES}"),
        ("generate: 5\n", "generate: found 5, allowed: keys and values"),
        ("generate:\n", "generate: found null, allowed: keys and values"),
        ("generate: [rows]\n", "generate: found ['rows'], allowed: keys and values"),
    ],
)
def test_sections_that_are_wrong_are_refused(content: str, line: str) -> None:
    assert refusal("generate", content) == f"params.yaml: {line}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("generate: {rows: 1\ntrain: 2\n", "line 2, column 6: expected ',' or '}', but got ':'"),
        ("generate:\n  rows: 1\n seed: 2\n", "line 3, column 2: expected <block end>, but found '<block mapping start>'"),
        ("generate:\n\trows: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ('generate:\n  rows: "1\n', "line 3, column 1: found unexpected end of stream"),
        ("generate: *rows\n", "line 1, column 11: found undefined alias 'rows'"),
        ("train: {}\n---\ngenerate: {}\n", "line 2, column 1: but found another document"),
        (
            "generate: !!python/object:os.system {}\n",
            "line 1, column 11: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        (
            "generate:\n  rows: 1\n  seed: 2\n  rows: 3\n",
            'line 4, column 3: found duplicate key "rows" with value "3" (original value: "1")',
        ),
        (
            "generate: {}\ntrain: {}\ngenerate: {}\n",
            'line 3, column 1: found duplicate key "generate" with value "{}" (original value: "{}")',
        ),
        (
            "generate: {rows: \u00e9}\n".encode("latin-1"),
            "line 1, column 18: found the byte 0xe9, allowed: text in UTF-8",
        ),
        (
            "generate: {rows: \0}\n",
            "line 1, column 18: found the character 0x00, allowed: printable text",
        ),
        ("# café\ngenerate: {é: \xff\n".encode("latin-1"), "line 1, column 6: found the byte 0xe9, allowed: text in UTF-8"),
        ("# café\ngenerate: {é: \0\n", "line 2, column 15: found the character 0x00, allowed: printable text"),
        ("generate: {}".encode("utf-16"), "line 1, column 1: found the byte 0xff, allowed: text in UTF-8"),
        ("generate: {rows: 2026-13-01}\n", "line 1, column 18: found '2026-13-01', which is no timestamp"),
        ("generate:\n  rows: !!int ''\n", "line 2, column 9: found '', which is no int"),
        ("track: {log_model: !!bool maybe}\n", "line 1, column 20: found 'maybe', which is no bool"),
        (f"generate: {{rows: {'9' * 5000}}}\n", f"line 1, column 18: found '{'9' * 199}…, which is no int"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(content: str | bytes, line: str) -> None:
    assert refusal("generate", content) == f"params.yaml: {line}"


def test_yaml_nested_beyond_all_bounds_is_refused() -> None:
    Path("params.yaml").write_text("[" * 1000)

    with pytest.raises(SettingsError, match=r"^params\.yaml: found values nested too deeply to be read, allowed: 20 levels$"):
        Params()


PLAIN = "text, numbers, true, false, null, lists, keys and values"
BOMB = "generate:\n  a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
    f"  {key}: &{key} [{', '.join([f'*{last}'] * 10)}]\n" for last, key in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("generate: {low: 2020-01-01}", f"generate.low: found 2020-01-01, allowed: {PLAIN}"),
        ("generate: {coefficients: !!set {1}}", f"generate.coefficients: found {{1}}, allowed: {PLAIN}"),
        ("track: {run_name: !!binary aGk=}", f"track.run_name: found b'hi', allowed: {PLAIN}"),
        ("generate: {rows: &a [[*a]]}", "generate.rows.0: found values nested too deeply, allowed: 20 levels"),
        ("train: &a {model: *a}", "train.model.model: found values nested too deeply, allowed: 20 levels"),
        (f"train: {{model: {'[' * 20}{']' * 20}}}", "train.model.0: found values nested too deeply, allowed: 20 levels"),
        (BOMB, "generate: found more than 100000 values, allowed: so many at most"),
        (f"generate: {{rows: {2**63}}}", "generate.rows: found an integer of 64 bits, allowed: 63 at most"),
        (f"generate: {{rows: 0x{'f' * 6000}}}", "generate.rows: found an integer of 24000 bits, allowed: 63 at most"),
        ('prepare: {csv: "a\\0b"}', "prepare.csv: found the character 0x00, allowed: printable text"),
        ('track: {run_name: "\\ud800"}', "track.run_name: found the character 0xd800, allowed: printable text"),
        ('generate: {"a\\nb": 2020-01-01}', f"generate.'a\\nb': found 2020-01-01, allowed: {PLAIN}"),
    ],
)
def test_what_json_cannot_hold_is_refused_whichever_section_is_read(content: str, line: str) -> None:
    assert refusal("evaluate", f"evaluate: {{}}\n{content}\n") == f"params.yaml: {line}"


def test_an_alias_stands_for_its_value() -> None:
    Path("params.yaml").write_text("generate: {seed: &seed 5}\nprepare: {split: {seed: *seed}}\n")

    assert Params().section("prepare", PrepareSettings).split.seed == 5


def test_a_key_with_a_line_break_is_named_in_one_line() -> None:
    assert refusal("generate", 'generate: {"a\\nb": 1}\n') == (
        f"params.yaml: generate.'a\\nb': unknown key, allowed: {GENERATE_KEYS}"
    )


def test_a_long_value_is_cut_in_the_error() -> None:
    assert refusal("generate", f"generate: {{rows: {'a' * 500}}}\n") == (
        f"params.yaml: generate.rows: found '{'a' * 199}…, allowed: a valid integer"
    )


def test_a_missing_params_yaml_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        Params().section("generate", GenerateSettings)

    assert str(caught.value) == "params.yaml: cannot be read: No such file or directory"


def test_a_folder_instead_of_params_yaml_is_refused() -> None:
    Path("params.yaml").mkdir()

    with pytest.raises(SettingsError) as caught:
        Params()

    assert str(caught.value) == "params.yaml: cannot be read: Is a directory"


def test_the_error_names_the_file_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("evaluate: {sample: 0}\n")

    with pytest.raises(SettingsError) as caught:
        Params(path).section("evaluate", EvaluateSettings)

    assert str(caught.value) == f"{path}: evaluate.sample: found 0, allowed: greater than or equal to 1"


# --- one section at a time: the values, and the error line behind the section's name


@pytest.mark.parametrize(
    ("values", "line"),
    [
        # Keys.
        ("{row: 5}", f"row: unknown key, allowed: {GENERATE_KEYS}; did you mean rows?"),
        ("{noise: 5}", f"noise: unknown key, allowed: {GENERATE_KEYS}; did you mean noise_std?"),
        ("{zzz: 5}", f"zzz: unknown key, allowed: {GENERATE_KEYS}"),
        ("{1: 5}", f"1: unknown key, allowed: {GENERATE_KEYS}"),
        ("{rows: 0, zzz: 5}", f"zzz: unknown key, allowed: {GENERATE_KEYS}"),
        # Types.
        ("{rows: 1.5}", "rows: found 1.5, allowed: a valid integer"),
        ("{rows: 10.0}", "rows: found 10.0, allowed: a valid integer"),
        ("{rows: 1e3}", "rows: found 1000.0, allowed: a valid integer"),
        ("{rows: '3'}", "rows: found '3', allowed: a valid integer"),
        ("{rows: true}", "rows: found true, allowed: a valid integer"),
        ("{rows: null}", "rows: found null, allowed: a valid integer"),
        ("{seed: 1.0}", "seed: found 1.0, allowed: a valid integer"),
        ("{intercept: true}", "intercept: found true, allowed: a valid number"),
        ("{intercept: '1'}", "intercept: found '1', allowed: a valid number"),
        ("{coefficients: 2.0}", "coefficients: found 2.0, allowed: a valid list"),
        ("{coefficients: '12'}", "coefficients: found '12', allowed: a valid list"),
        ("{coefficients: null}", "coefficients: found null, allowed: a valid list"),
        ("{coefficients: [1.0, true]}", "coefficients.1: found true, allowed: a valid number"),
        ("{coefficients: [a]}", "coefficients.0: found 'a', allowed: a valid number"),
        ("{low: [0]}", "low: found [0], allowed: a valid number"),
        ("{noise_std: {}}", "noise_std: found {}, allowed: a valid number"),
        # Ranges.
        ("{rows: 0}", "rows: found 0, allowed: greater than or equal to 1"),
        ("{seed: -1}", "seed: found -1, allowed: greater than or equal to 0"),
        ("{intercept: .nan}", "intercept: found .nan, allowed: a finite number"),
        ("{intercept: .inf}", "intercept: found .inf, allowed: a finite number"),
        ("{intercept: 1e999}", "intercept: found .inf, allowed: a finite number"),
        ("{coefficients: []}", "coefficients: found [], allowed: at least 1 item"),
        ("{coefficients: [1.0, .nan]}", "coefficients.1: found .nan, allowed: a finite number"),
        ("{low: -.inf}", "low: found -.inf, allowed: a finite number"),
        ("{high: .nan}", "high: found .nan, allowed: a finite number"),
        ("{noise_std: -0.1}", "noise_std: found -0.1, allowed: greater than or equal to 0"),
        # Several at once.
        ("{rows: 0, seed: -1}", "rows: found 0, allowed: greater than or equal to 1 (and 1 more)"),
        ("{seed: 1.5, rows: 0, low: a}", "rows: found 0, allowed: greater than or equal to 1 (and 2 more)"),
        # Combinations.
        ("{low: 1.0, high: 1.0}", "high: found 1.0, allowed: more than generate.low, 1.0"),
        ("{low: 2.0}", "high: found 1.0, allowed: more than generate.low, 2.0"),
        (
            "{low: -1.5e308, high: 1.5e308}",
            "high: found 1.5e+308, allowed: a number whose distance from generate.low, -1.5e+308, is finite",
        ),
    ],
)
def test_generate_refuses(values: str, line: str) -> None:
    assert refusal("generate", f"generate: {values}\n") == f"params.yaml: generate.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        # Keys.
        (
            "{feature: [a]}",
            "feature: unknown key, allowed: csv, parts, format, features, exclude, target, columns, missing, weight, split, "
            "dtype; did you mean features?",
        ),
        (
            "{split: {colum: s}}",
            "split.colum: unknown key, allowed: train, validation, test, seed, column, group, order, folds, fold; "
            "did you mean column?",
        ),
        # Types.
        ("{csv: null}", "csv: found null, allowed: a valid string"),
        ("{csv: 5}", "csv: found 5, allowed: a valid string"),
        ("{features: a}", "features: found 'a', allowed: a valid list"),
        ("{features: [a, 1]}", "features.1: found 1, allowed: a valid string"),
        ("{target: 3}", "target: found 3, allowed: a valid string"),
        ("{split: null}", "split: found null, allowed: keys and values"),
        ("{split: 0.8}", "split: found 0.8, allowed: keys and values"),
        ("{split: {train: '0.8'}}", "split.train: found '0.8', allowed: a valid number"),
        ("{split: {seed: 1.5}}", "split.seed: found 1.5, allowed: a valid integer"),
        ("{split: {column: 5}}", "split.column: found 5, allowed: a valid string"),
        # Ranges.
        ("{csv: ''}", "csv: found '', allowed: at least 1 character"),
        (
            "{features: [a], exclude: [b]}",
            "exclude: found ['b'], allowed: [] beside prepare.features, which names all that are used",
        ),
        ("{target: a, exclude: [a]}", "exclude: found 'a', allowed: neither the target nor the split column"),
        ("{format: {separator: .}}", "format.separator: found '.', allowed: ',', ';', '\\t', '|' or ' '"),
        ("{features: []}", "features: found [], allowed: at least 1 item"),
        ("{dtype: float16}", "dtype: found 'float16', allowed: 'float32' or 'float64'"),
        ("{dtype: null}", "dtype: found null, allowed: 'float32' or 'float64'"),
        ("{split: {train: 1.0}}", "split.train: found 1.0, allowed: less than 1"),
        ("{split: {train: .nan}}", "split.train: found .nan, allowed: a finite number"),
        ("{split: {validation: 0}}", "split.validation: found 0, allowed: greater than 0"),
        ("{split: {test: -0.1}}", "split.test: found -0.1, allowed: greater than 0"),
        ("{split: {seed: -5}}", "split.seed: found -5, allowed: greater than or equal to 0"),
        # Combinations.
        ("{split: {train: 0.5}}", "split.train: found 0.5, allowed: 0.8, so that the three fractions add up to 1"),
        ("{split: {test: 0.3}}", "split.train: found 0.8, allowed: 0.6, so that the three fractions add up to 1"),
        (
            "{split: {validation: 0.6, test: 0.6}}",
            "split.test: found 0.6, allowed: less than 0.4, so that the three fractions add up to 1",
        ),
        (
            "{split: {column: s, train: 0.7, validation: 0.2}}",
            "split.train: found 0.7, allowed: 0.8 with prepare.split.column 's', which says each row's split",
        ),
        (
            "{split: {column: s, seed: 1}}",
            "split.seed: found 1, allowed: 42 with prepare.split.column 's', which says each row's split",
        ),
        (
            "{split: {column: s, group: g}}",
            "split.group: found 'g', allowed: null with prepare.split.column 's', which says each row's split",
        ),
        (
            "{split: {order: t, seed: 1}}",
            "split.seed: found 1, allowed: 42 with prepare.split.order 't', which alone says each row's split",
        ),
        (
            "{split: {order: t, group: g}}",
            "split.group: found 'g', allowed: null with prepare.split.order 't', which alone says each row's split",
        ),
        (
            "{split: {order: t, folds: 5}}",
            "split.folds: found 5, allowed: null with prepare.split.order 't', since a model of later rows would "
            "be tested on earlier ones",
        ),
        ("{split: {folds: 2}}", "split.folds: found 2, allowed: greater than or equal to 3"),
        ("{split: {folds: 1001}}", "split.folds: found 1001, allowed: less than or equal to 1000"),
        ("{split: {folds: 5, fold: 5}}", "split.fold: found 5, allowed: 0 to 4 with prepare.split.folds 5"),
        ("{split: {fold: 1}}", "split.fold: found 1, allowed: 0 without prepare.split.folds"),
        (
            "{split: {folds: 5, train: 0.6, validation: 0.2, test: 0.2}}",
            "split.train: found 0.6, allowed: 0.8 with prepare.split.folds 5, of which one tests, one validates, "
            "and all others train",
        ),
        ("{target: g, split: {group: g}}", "target: found 'g', allowed: a column other than prepare.split.group"),
        ("{target: t, split: {order: t}}", "target: found 't', allowed: a column other than prepare.split.order"),
        ("{exclude: [g], split: {group: g}}", "exclude: found 'g', allowed: neither the target nor the split column"),
        ("{target: s, split: {column: s}}", "target: found 's', allowed: a column other than prepare.split.column"),
        ("{features: [a, a]}", "features: found 'a', allowed: each column once, neither the target nor the split column"),
        (
            "{features: [a, y], target: y}",
            "features: found 'y', allowed: each column once, neither the target nor the split column",
        ),
        (
            "{features: [s, a], split: {column: s}}",
            "features: found 's', allowed: each column once, neither the target nor the split column",
        ),
    ],
)
def test_prepare_refuses(values: str, line: str) -> None:
    assert refusal("prepare", f"prepare: {values}\n") == f"params.yaml: prepare.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        # Keys.
        ("{epoch: 3}", f"epoch: unknown key, allowed: {TRAIN_KEYS}; did you mean epochs?"),
        ("{lr: 0.1}", f"lr: unknown key, allowed: {TRAIN_KEYS}"),
        # Types.
        ("{model: linear}", "model: found 'linear', allowed: keys and values"),
        ("{device: 0}", "device: found 0, allowed: a valid string"),
        ("{seed: 1.0}", "seed: found 1.0, allowed: a valid integer"),
        ("{scale: true}", "scale: found true, allowed: keys and values"),
        ("{standardize: true}", f"standardize: unknown key, allowed: {TRAIN_KEYS}"),
        ("{epochs: 2.5}", "epochs: found 2.5, allowed: a valid integer"),
        ("{clip_norm: '1'}", "clip_norm: found '1', allowed: a valid number"),
        ("{batch_size: 1.5}", "batch_size: found 1.5, allowed: all, or a whole number of at least 1"),
        ("{batch_size: true}", "batch_size: found true, allowed: all, or a whole number of at least 1"),
        ("{batch_size: '16'}", "batch_size: found '16', allowed: all, or a whole number of at least 1"),
        ("{batch_size: null}", "batch_size: found null, allowed: all, or a whole number of at least 1"),
        ("{shuffle: false}", "shuffle: found false, allowed: 'full' or 'block'"),
        # Ranges.
        ("{engine: jax}", "engine: found 'jax', allowed: 'numpy', 'autograd', 'torch', 'compiled' or 'auto'"),
        ("{device: gpu}", "device: found 'gpu', allowed: auto, cpu, cuda, cuda:N or mps"),
        ("{device: 'cuda:'}", "device: found 'cuda:', allowed: auto, cpu, cuda, cuda:N or mps"),
        ("{device: 'cuda:first'}", "device: found 'cuda:first', allowed: auto, cpu, cuda, cuda:N or mps"),
        ("{device: 'mps:0'}", "device: found 'mps:0', allowed: auto, cpu, cuda, cuda:N or mps"),
        ("{seed: -1}", "seed: found -1, allowed: greater than or equal to 0"),
        ("{scale: {feature: none}}", "scale.feature: unknown key, allowed: features, target; did you mean features?"),
        ("{scale: {features: log}}", "scale.features: found 'log', allowed: 'standard' or 'none'"),
        ("{scale: {target: robust}}", "scale.target: found 'robust', allowed: 'standard', 'log' or 'none'"),
        ("{threads: 0}", "threads: found 0, allowed: greater than or equal to 1"),
        (f"{{threads: {2**31}}}", f"threads: found {2**31}, allowed: less than or equal to 1024"),
        ("{batch_size: 0}", "batch_size: found 0, allowed: all, or a whole number of at least 1"),
        ("{shards: 0}", "shards: found 0, allowed: greater than or equal to 1"),
        ("{shards: 6}", "shards: found 6, allowed: a power of two"),
        ("{shards: 32}", "shards: found 32, allowed: a power of two up to train.batch_size, 16"),
        ("{shards: 2, engine: numpy}", "engine: found 'numpy', allowed: torch, since numpy takes whole batches (shards: 1)"),
        (
            "{shards: 2, engine: autograd}",
            "engine: found 'autograd', allowed: torch, since autograd takes whole batches (shards: 1)",
        ),
        (
            "{shards: 2, engine: compiled, compile: {batches: 4}}",
            "compile.batches: found 4, allowed: 16 with shards above 1, since each shard's gradient is a graph",
        ),
        ("{batch_size: full}", "batch_size: found 'full', allowed: all, or a whole number of at least 1"),
        ("{shuffle: none}", "shuffle: found 'none', allowed: 'full' or 'block'"),
        ("{epochs: 0}", "epochs: found 0, allowed: greater than or equal to 1"),
        ("{clip_norm: 0.0}", "clip_norm: found 0.0, allowed: greater than 0"),
        ("{clip_norm: .nan}", "clip_norm: found .nan, allowed: a finite number"),
        ("{clip_norm: 1.0e+39}", "clip_norm: found 1e+39, allowed: less than or equal to 1000000000"),
    ],
)
def test_train_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {values}\n") == f"params.yaml: train.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("{nam: mlp}", "nam: unknown key, allowed: name, hidden, activation, dropout; did you mean name?"),
        ("{name: cnn}", f"name: found 'cnn', allowed: {names_of(ModelSettings)}"),
        ("{name: mlp, hidden: 8}", "hidden: found 8, allowed: a valid list"),
        ("{name: mlp, hidden: ['8']}", "hidden.0: found '8', allowed: a valid integer"),
        ("{name: mlp, hidden: [8, 1.5]}", "hidden.1: found 1.5, allowed: a valid integer"),
        ("{name: mlp, hidden: [0]}", "hidden.0: found 0, allowed: greater than or equal to 1"),
        ("{name: mlp, hidden: [1000000000000]}", "hidden.0: found 1000000000000, allowed: less than or equal to 16777216"),
        ("{name: mlp, hidden: [8], activation: selu}", "activation: found 'selu', allowed: 'relu', 'tanh' or 'gelu'"),
        ("{name: mlp, hidden: [8], dropout: 1.0}", "dropout: found 1.0, allowed: less than 1"),
        ("{name: mlp, hidden: [8], dropout: -0.1}", "dropout: found -0.1, allowed: greater than or equal to 0"),
        ("{name: mlp}", "hidden: found [], allowed: at least one layer's size with model mlp, such as [64, 64]"),
        ("{hidden: [8, 4]}", "hidden: found [8, 4], allowed: [] with model linear, which has no hidden layers"),
        ("{activation: tanh}", "activation: found 'tanh', allowed: 'relu' with model linear, which has no hidden layers"),
        ("{dropout: 0.5}", "dropout: found 0.5, allowed: 0.0 with model linear, which has no hidden layers"),
    ],
)
def test_train_model_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {{model: {values}}}\n") == f"params.yaml: train.model.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("{loss: mse}", "loss: found 'mse', allowed: keys and values"),
        ("{loss: {delta: 2.0}}", "loss.delta: found 2.0, allowed: 1.0 with loss mse, which has none"),
        ("{loss: {name: huber, delta: 0}}", "loss.delta: found 0, allowed: greater than 0"),
        ("{loss: {name: huber, delta: 1.0e+39}}", "loss.delta: found 1e+39, allowed: less than or equal to 1000000000"),
        ("{loss: {power: 2}}", "loss.power: unknown key, allowed: name, reduction, delta"),
        ("{loss: {name: nothing}}", f"loss.name: found 'nothing', allowed: {names_of(LossSettings)}"),
        ("{loss: {reduction: none}}", "loss.reduction: found 'none', allowed: 'mean' or 'sum'"),
    ],
)
def test_train_loss_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {values}\n") == f"params.yaml: train.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            "{learning_rate: 0.1}",
            "learning_rate: unknown key, allowed: name, lr, momentum, nesterov, weight_decay",
        ),
        ("{name: nothing}", f"name: found 'nothing', allowed: {names_of(OptimizerSettings)}"),
        ("{lr: '0.1'}", "lr: found '0.1', allowed: a valid number"),
        ("{lr: 0}", "lr: found 0, allowed: greater than 0"),
        ("{lr: .inf}", "lr: found .inf, allowed: a finite number"),
        ("{lr: 1.0e+39}", "lr: found 1e+39, allowed: less than or equal to 1000000000"),
        ("{momentum: 1.0}", "momentum: found 1.0, allowed: less than 1"),
        ("{momentum: -0.5}", "momentum: found -0.5, allowed: greater than or equal to 0"),
        ("{momentum: 0.9, nesterov: 1}", "nesterov: found 1, allowed: a valid boolean"),
        ("{weight_decay: -1}", "weight_decay: found -1, allowed: greater than or equal to 0"),
        ("{weight_decay: 1.0e+39}", "weight_decay: found 1e+39, allowed: less than or equal to 1000000000"),
        ("{nesterov: true}", "nesterov: found true, allowed: false without a momentum"),
        ("{name: adam, momentum: 0.9}", "momentum: found 0.9, allowed: 0.0 with optimizer adam, which has none"),
        ("{name: adamw, nesterov: true}", "nesterov: found true, allowed: false with optimizer adamw, which has none"),
    ],
)
def test_train_optimizer_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {{optimizer: {values}}}\n") == f"params.yaml: train.optimizer.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            "{step: 5}",
            "step: unknown key, allowed: name, step_size, gamma, min_lr, factor, patience; did you mean step_size?",
        ),
        ("{name: exp}", "name: found 'exp', allowed: 'constant', 'step', 'cosine' or 'plateau'"),
        ("{name: step, step_size: 0}", "step_size: found 0, allowed: greater than or equal to 1"),
        ("{name: step, gamma: 0.0}", "gamma: found 0.0, allowed: greater than 0"),
        ("{name: step, gamma: 1.5}", "gamma: found 1.5, allowed: less than or equal to 1"),
        ("{name: cosine, min_lr: -1}", "min_lr: found -1, allowed: greater than or equal to 0"),
        ("{name: cosine, min_lr: 0.5}", "min_lr: found 0.5, allowed: at most train.optimizer.lr, 0.05"),
        ("{name: plateau, factor: 1.0}", "factor: found 1.0, allowed: less than 1"),
        ("{name: plateau, factor: 0.0}", "factor: found 0.0, allowed: greater than 0"),
        ("{name: plateau, patience: -1}", "patience: found -1, allowed: greater than or equal to 0"),
        # Each key belongs to one schedule.
        ("{step_size: 5}", "step_size: found 5, allowed: 10 with schedule cosine"),
        ("{gamma: 0.5}", "gamma: found 0.5, allowed: 0.1 with schedule cosine"),
        ("{name: constant, min_lr: 0.01}", "min_lr: found 0.01, allowed: 0.0 with schedule constant"),
        ("{factor: 0.5}", "factor: found 0.5, allowed: 0.1 with schedule cosine"),
        ("{name: constant, patience: 3}", "patience: found 3, allowed: 10 with schedule constant"),
        ("{name: step, min_lr: 0.01}", "min_lr: found 0.01, allowed: 0.0 with schedule step"),
        ("{name: step, factor: 0.5}", "factor: found 0.5, allowed: 0.1 with schedule step"),
        ("{name: cosine, step_size: 3}", "step_size: found 3, allowed: 10 with schedule cosine"),
        ("{name: cosine, patience: 3}", "patience: found 3, allowed: 10 with schedule cosine"),
        ("{name: plateau, gamma: 0.5}", "gamma: found 0.5, allowed: 0.1 with schedule plateau"),
        ("{name: plateau, min_lr: 0.01}", "min_lr: found 0.01, allowed: 0.0 with schedule plateau"),
    ],
)
def test_train_schedule_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {{schedule: {values}}}\n") == f"params.yaml: train.schedule.{line}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("{patience: 0}", "patience: found 0, allowed: greater than or equal to 1"),
        ("{patience: 2.0}", "patience: found 2.0, allowed: a valid integer"),
        ("{patience: 2, min_delta: -0.1}", "min_delta: found -0.1, allowed: greater than or equal to 0"),
        ("{patience: 2, min_delta: .inf}", "min_delta: found .inf, allowed: a finite number"),
        ("{min_delta: 0.1}", "min_delta: found 0.1, allowed: 0.0 without a patience"),
    ],
)
def test_train_early_stopping_refuses(values: str, line: str) -> None:
    assert refusal("train", f"train: {{early_stopping: {values}}}\n") == f"params.yaml: train.early_stopping.{line}"


@pytest.mark.parametrize("engine", ["numpy", "autograd"])
@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ("model: {name: mlp, hidden: [4]}", "the model linear"),
        ("loss: {name: l1}", "the loss mse"),
        ("optimizer: {name: adam}", "plain sgd"),
        ("optimizer: {momentum: 0.9}", "plain sgd"),
        ("optimizer: {weight_decay: 0.1}", "plain sgd"),
        ("clip_norm: 1.0", "no clip_norm"),
    ],
)
def test_the_engines_by_hand_refuse_what_they_lack(engine: str, values: str, needed: str) -> None:
    assert refusal("train", f"train: {{engine: {engine}, {values}}}\n") == (
        f"params.yaml: train.engine: found '{engine}', allowed: torch, since {engine} takes {needed}"
    )


def test_the_compiled_engine_refuses_mps() -> None:
    assert refusal("train", "train: {engine: compiled, device: mps}\n") == (
        "params.yaml: train.engine: found 'compiled', allowed: torch or auto with device mps"
    )


@pytest.mark.parametrize("engine", ["numpy", "autograd", "torch"])
def test_compile_has_no_effect_on_other_engines_and_is_refused(engine: str) -> None:
    assert refusal("train", f"train: {{engine: {engine}, compile: {{batches: 4}}}}\n") == (
        "params.yaml: train.compile: found {'batches': 4, 'cpp_wrapper': true}, "
        f"allowed: {{'batches': 16, 'cpp_wrapper': true}} with engine {engine}"
    )
    for other in ("compiled", "auto"):
        assert load("train", f"{{engine: {other}, compile: {{batches: 4}}}}").compile.batches == 4


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_the_numpy_engine_refuses_an_accelerator(device: str) -> None:
    assert refusal("train", f"train: {{engine: numpy, device: '{device}'}}\n") == (
        f"params.yaml: train.engine: found 'numpy', allowed: autograd or torch with device {device}"
    )


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("evaluate", "{sampel: 5}", "sampel: unknown key, allowed: sample; did you mean sample?"),
        ("evaluate", "{sample: 1.0}", "sample: found 1.0, allowed: a valid integer"),
        ("evaluate", "{sample: 0}", "sample: found 0, allowed: greater than or equal to 1"),
        (
            "track",
            "{name: a}",
            "name: unknown key, allowed: experiment, run_name, largest_file_mb, log_model; did you mean run_name?",
        ),
        ("track", "{experiment: null}", "experiment: found null, allowed: a valid string"),
        ("track", "{experiment: 5}", "experiment: found 5, allowed: a valid string"),
        ("track", "{experiment: ''}", "experiment: found '', allowed: at least 1 character"),
        ("track", "{largest_file_mb: -1}", "largest_file_mb: found -1, allowed: greater than or equal to 0"),
        ("track", "{log_model: 1}", "log_model: found 1, allowed: a valid boolean"),
        ("track", "{run_name: 5}", "run_name: found 5, allowed: a valid string"),
        ("track", "{run_name: ''}", "run_name: found '', allowed: at least 1 character"),
        ("checkpoint", "{epoch: 1}", "epoch: unknown key, allowed: epochs, seconds; did you mean epochs?"),
        ("checkpoint", "{epochs: 0}", "epochs: found 0, allowed: greater than or equal to 1"),
        ("checkpoint", "{seconds: 0}", "seconds: found 0, allowed: greater than 0"),
        ("checkpoint", "{seconds: .inf}", "seconds: found .inf, allowed: a finite number"),
    ],
)
def test_evaluate_track_and_checkpoint_refuse(section: str, values: str, line: str) -> None:
    assert refusal(section, f"{section}: {values}\n") == f"params.yaml: {section}.{line}"


# --- what is accepted


@pytest.mark.parametrize(
    ("section", "values", "key", "expected"),
    [
        ("generate", "{noise_std: 1e-3}", "noise_std", 0.001),
        ("generate", "{intercept: 1}", "intercept", 1.0),
        ("generate", "{noise_std: 0}", "noise_std", 0.0),
        ("generate", "{coefficients: [1, -2.5, 3e2]}", "coefficients", (1.0, -2.5, 300.0)),
        ("prepare", "{features: [b, a]}", "features", ["b", "a"]),
        ("train", "{batch_size: all}", "batch_size", "all"),
        ("train", "{batch_size: 1}", "batch_size", 1),
        ("train", "{device: 'cuda:1'}", "device", "cuda:1"),
        ("train", "{clip_norm: 1}", "clip_norm", 1.0),
        ("track", "{run_name: first}", "run_name", "first"),
        ("track", "{largest_file_mb: 0}", "largest_file_mb", 0),
    ],
)
def test_a_value_is_taken_as_it_stands(section: str, values: str, key: str, expected: object) -> None:
    assert getattr(load(section, values), key) == expected


@pytest.mark.parametrize(
    "values",
    [
        "{model: {name: mlp, hidden: [64, 32], activation: gelu, dropout: 0.5}}",
        "{optimizer: {momentum: 0.9, nesterov: true, weight_decay: 0.1}, clip_norm: 1.0}",
        "{optimizer: {name: adamw, weight_decay: 0.1}}",
        "{schedule: {name: step, step_size: 3, gamma: 0.5}}",
        "{schedule: {name: cosine, min_lr: 0.01}}",
        "{schedule: {name: plateau, factor: 0.5, patience: 0}}",
        "{early_stopping: {patience: 1, min_delta: 0.1}}",
        "{engine: numpy, device: cpu, loss: {reduction: sum}, schedule: {name: cosine}, early_stopping: {patience: 2}}",
        "{engine: autograd, device: cuda, batch_size: all, shuffle: block, scale: {target: log}}",
    ],
)
def test_train_accepts_what_goes_together(values: str) -> None:
    assert isinstance(load("train", values), TrainSettings)


def test_split_fractions_need_add_up_only_to_rounding() -> None:
    split = load("prepare", "{split: {train: 0.7, validation: 0.2, test: 0.1}}").split

    assert (split.train, split.validation, split.test) == (0.7, 0.2, 0.1)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("generate", "{}").rows = 5


# --- params.yaml of the repository


def test_params_yaml_holds_the_keys_and_defaults_of_the_design() -> None:
    # As JSON, since Python takes 1, 1.0 and True for equal.
    assert json.dumps(Params(PARAMS_YAML).values, sort_keys=True) == json.dumps(DEFAULTS, sort_keys=True)


@pytest.mark.parametrize("section", SECTIONS)
def test_params_yaml_holds_the_defaults_in_the_code(section: str) -> None:
    model = SECTIONS[section]

    assert Params(PARAMS_YAML).section(section, model) == model()


def test_every_key_in_params_yaml_has_a_comment() -> None:
    lines = PARAMS_YAML.read_text().splitlines()

    assert [line for line in lines if line.strip() and "# " not in line] == []


# --- flatten


def test_flatten_joins_keys_with_dots_and_keeps_lists_whole() -> None:
    nested = {"train": {"lr": 0.1, "model": {"hidden": [8, 4], "name": None}}, "rows": 3}

    assert flatten(nested) == {"train.lr": 0.1, "train.model.hidden": [8, 4], "train.model.name": None, "rows": 3}


def test_flatten_of_params_yaml_gives_every_dotted_key() -> None:
    flat = flatten(Params(PARAMS_YAML).values)

    assert {key for key in flat if key.startswith("prepare.")} == {
        "prepare.csv",
        "prepare.parts",
        "prepare.format.separator",
        "prepare.format.decimal",
        "prepare.format.thousands",
        "prepare.format.encoding",
        "prepare.format.header",
        "prepare.format.comment",
        "prepare.format.missing",
        "prepare.features",
        "prepare.exclude",
        "prepare.target",
        "prepare.missing.features",
        "prepare.missing.target",
        "prepare.weight",
        "prepare.split.train",
        "prepare.split.validation",
        "prepare.split.test",
        "prepare.split.seed",
        "prepare.split.column",
        "prepare.split.group",
        "prepare.split.order",
        "prepare.split.folds",
        "prepare.split.fold",
        "prepare.dtype",
    }
    assert flat["train.optimizer.lr"] == 0.05
