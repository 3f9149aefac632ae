"""A loss, a metric, an optimizer and a model, each added as CONTRIBUTING.md says: in one file of a copy of the sources."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from helpers_training import normal_line, write_prepared
from workspace import ROOT

# By the file, what is there and what comes instead of it.
ADDED = {
    "training/losses.py": [
        ("    name: Literal[", '    name: Literal["own_smooth", '),
        (
            '        case "l1":\n            return nn',
            '        case "own_smooth":\n            return nn.SmoothL1Loss(reduction=reduction)\n'
            '        case "l1":\n            return nn',
        ),
        ('        case "mse" | "huber":\n', '        case "mse" | "huber" | "own_smooth":\n'),
    ],
    "evaluation/metrics.py": [
        (
            "METRICS: ",
            'class OwnMax:\n    """max |y - p|."""\n\n    largest = 0.0\n\n'
            "    def add(self, target, predicted, weight=None):\n"
            "        self.largest = max(self.largest, float(np.abs(target - predicted).max()))\n\n"
            "    def value(self):\n        return self.largest\n\n\nMETRICS: ",
        ),
        ('    "mae": MAE,\n', '    "mae": MAE,\n    "own_max": OwnMax,\n'),
    ],
    "training/optimizers.py": [
        ("    name: Literal[", '    name: Literal["own_adagrad", '),
        (
            '        case "adam":\n',
            '        case "own_adagrad":\n'
            "            return torch.optim.Adagrad(groups, lr=lr, foreach=foreach)\n"
            '        case "adam":\n',
        ),
        (
            '        case "adam" | "adamw":\n            moments',
            '        case "own_adagrad":\n'
            '            return {"sum": torch.zeros_like(parameter), "step": torch.zeros(())}\n'
            '        case "adam" | "adamw":\n            moments',
        ),
        (
            '            case "adam" | "adamw":\n                step',
            '            case "own_adagrad":\n                from torch.optim.adagrad import adagrad\n\n'
            '                defaults = {"lr_decay": 0.0, "eps": 1e-10, "has_sparse_grad": False, "has_complex": False}\n'
            '                adagrad(chosen, slopes, own["sum"], own["step"], **defaults, **common)\n'
            '            case "adam" | "adamw":\n                step',
        ),
    ],
    "model/models.py": [
        ("    name: Literal[", '    name: Literal["own_squares", '),
        (
            "def build_model(",
            'class Squares(nn.Module):\n    """A line through the features and their squares."""\n\n'
            "    def __init__(self, width):\n        super().__init__()\n"
            "        self.linear = linear_on_meta(2 * width, 1)\n\n    def forward(self, features):\n"
            "        return self.linear(torch.cat([features, features**2], dim=1))\n\n\n"
            "def build_model(",
        ),
        (
            '        case "mlp":\n',
            '        case "own_squares":\n            return Squares(width)\n        case "mlp":\n',
        ),
    ],
}

WORK = """
import json, sys
from pathlib import Path
import torch
from truefit.data.dataset import open_verified
from truefit.evaluation.least_squares import least_squares
from truefit.evaluation.report import compute_metrics, summary
from truefit.model.files import load_model, save_model
from truefit.training.loop import train
from truefit.training.optimizers import OptimizerSettings, first_state, make_optimizer, update
from truefit.training.settings import TrainSettings, trained_with

table = Path("prepared")
settings = TrainSettings.model_validate({
    "model": {"name": "own_squares"}, "loss": {"name": "own_smooth"}, "epochs": 30,
    "optimizer": {"name": "own_adagrad", "lr": 0.5},
})
train_rows, validation_rows, test_rows = open_verified(table, "train", "validation", "test")
outcome = train([train_rows, validation_rows], settings, torch.device("cpu"))
results, state, training = Path("results"), outcome.kept_state, settings.beside_the_model()
save_model(results, state, settings.model, settings.scale, train_rows.table, training)
model, description = load_model(results, train_rows.table)
assert trained_with(description, results / "model.json") == settings
metrics = compute_metrics(test_rows, model, least_squares(train_rows).line, None)

# In a graph the function takes the step that the optimizer takes by itself.
eager, functional, gradient = torch.nn.Parameter(torch.ones(3)), torch.ones(3), torch.tensor([1.0, -2.0, 3.0])
optimizer, state = make_optimizer([eager], settings.optimizer), first_state(settings.optimizer, functional)
for _ in range(2):
    eager.grad = gradient.clone()
    optimizer.step()
    update(settings.optimizer, [functional], [gradient], {name: [value] for name, value in state.items()}, torch.tensor(0.5))
assert torch.allclose(eager.detach(), functional)
print(json.dumps({"metrics": metrics, "summary": summary(metrics)}))
"""


def test_a_loss_a_metric_an_optimizer_and_a_model_are_each_added_in_one_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, changes in ADDED.items():
        path = tmp_path / "src/truefit" / name
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        path.write_text(text)
    rows, others = (normal_line(count, seed=seed, noise=0.01) for count, seed in ((200, 0), (50, 1)))
    for part in (rows, others):
        part[:, -1] += part[:, 0] ** 2  # which no line can follow
    write_prepared(tmp_path / "prepared", rows, others)
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "src")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    test, best = told["metrics"]["test"], told["metrics"]["least_squares"]
    assert test["mse"] < 0.01 < best["mse"]
    assert test["rmse"] <= test["own_max"] < best["own_max"]
    assert "parameters" not in told["metrics"]  # it is no line
    header, model, *_ = told["summary"].splitlines()
    assert model.split()[1 + header.split().index("own_max")] == format(test["own_max"], ".6g")
