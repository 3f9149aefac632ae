"""The peers' ways to train the same model: each a function Work -> Trained, in the form that its documentation advises.

All take a linear model, MSE and plain SGD, shuffle every epoch, keep each epoch's training loss and validate after it. A
loop that is written here measures as it goes; Lightning and skorch run their own and tell when an epoch has ended.
"""

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from sklearn.linear_model import SGDRegressor
from skorch import NeuralNetRegressor
from skorch.helper import predefined_split
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

EPOCHS = 2
VALIDATION_BATCH = 65_536
LEARNING_RATE = 0.1
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Work:
    """The training rows x [N, F], y [N, 1] and the validation rows, in memory, and the batch size."""

    x: Tensor
    y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    batch: int

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """The four tensors as arrays."""
        return self.x.numpy(), self.y.numpy(), self.validation_x.numpy(), self.validation_y.numpy()


@dataclass(frozen=True)
class Trained:
    """The last epoch's seconds, its validation included, its mean training loss where it is kept, and the validation loss."""

    seconds: float
    loss: float
    validation_loss: float


def train(epoch: Callable[[], tuple[float, float]]) -> Trained:
    """Run the epochs, each of which gives its losses, and time the last."""
    for _ in range(EPOCHS):
        started = time.perf_counter()
        losses = epoch()
    return Trained(time.perf_counter() - started, *losses)


def model_and_step() -> tuple[nn.Module, Callable[[Tensor, Tensor], float]]:
    """Return the linear model and the tutorial's `train_step`."""
    torch.manual_seed(42)
    model, loss_function = nn.Linear(4, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def train_step(x: Tensor, y: Tensor) -> float:
        model.train()
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return model, train_step


def train_loop(batches: Callable[[], Batches], validation: Batches) -> Trained:
    """Train with the tutorial's step on what `batches` gives each epoch."""
    model, train_step = model_and_step()

    def epoch() -> tuple[float, float]:
        losses = [train_step(x, y) for x, y in batches()]
        return float(np.mean(losses)), validate(model, validation)

    return train(epoch)


def validate(model: nn.Module, batches: Batches) -> float:
    """Return the mean squared error over the rows."""
    model.eval()
    with torch.no_grad():
        sums = [(nn.functional.mse_loss(model(x), y, reduction="sum").item(), len(y)) for x, y in batches]
    return float(np.sum(sums, axis=0)[0] / np.sum(sums, axis=0)[1])


def whole_batches(dataset: Dataset[Any], batch_size: int, shuffle: bool = True) -> DataLoader[Any]:
    """Return a loader that asks the dataset for a batch at a time: torch's documented way to do without collation."""
    order = RandomSampler(dataset) if shuffle else range(len(dataset))  # type: ignore[arg-type]
    return DataLoader(dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)


def in_memory(work: Work) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the validation rows."""
    return TensorDataset(work.x, work.y), TensorDataset(work.validation_x, work.validation_y)


def tutorial(work: Work) -> Trained:
    """`TensorDataset` and a plain `DataLoader`, for validation too."""
    rows, validation = in_memory(work)
    loader, validation_loader = DataLoader(rows, work.batch, shuffle=True), DataLoader(validation, work.batch)
    return train_loop(lambda: loader, validation_loader)


def numpy_loop(work: Work) -> Trained:
    """A permutation, a batch by fancy indexing, the gradient by hand."""
    x, y, validation_x, validation_y = work.arrays
    generator = np.random.default_rng(42)
    weight: NDArray[Any] = np.zeros((4, 1), np.float32)
    bias: NDArray[Any] = np.zeros(1, np.float32)

    def epoch() -> tuple[float, float]:
        nonlocal weight, bias
        order = generator.permutation(len(x))
        losses = []
        for at in range(0, len(x), work.batch):
            index = order[at : at + work.batch]
            batch = x[index]
            error = batch @ weight + bias - y[index]
            losses.append(float((error**2).mean()))
            weight = weight - LEARNING_RATE * 2 / len(batch) * (batch.T @ error)
            bias = bias - LEARNING_RATE * 2 * error.mean(axis=0)
        return float(np.mean(losses)), float(((validation_x @ weight + bias - validation_y) ** 2).mean())

    return train(epoch)


def scikit_learn(work: Work) -> Trained:
    """`SGDRegressor`: one epoch is one `partial_fit`, which shuffles and takes a step a row; it has no mini-batches.

    Its squared error is half of MSE. The rate is a tenth of the others', since steps on single rows are noisier. It keeps no
    training loss.
    """
    x, y, validation_x, validation_y = work.arrays
    model = SGDRegressor(penalty=None, learning_rate="constant", eta0=LEARNING_RATE / 10, random_state=42)

    def epoch() -> tuple[float, float]:
        model.partial_fit(x, y[:, 0])
        return math.nan, float(((model.predict(validation_x) - validation_y[:, 0]) ** 2).mean())

    return train(epoch)


class LightningLinear(lightning.LightningModule):  # type: ignore[misc]
    """The linear model for Lightning; keeps the losses and the time at each epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.loss, self.squares = 0.0, 0.0
        self.losses: list[Tensor] = []
        self.ends: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the batch's loss."""
        loss = nn.functional.mse_loss(self.linear(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a sum."""
        self.squares = 0.0

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Add the batch's squared errors."""
        self.squares += nn.functional.mse_loss(self.linear(batch[0]), batch[1], reduction="sum").item()

    def on_train_epoch_end(self) -> None:
        """Keep the mean loss and the time; Lightning validates before this."""
        self.loss = float(torch.stack(self.losses).mean())
        self.losses.clear()
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def lightning_trainer(work: Work) -> Trained:
    """`Trainer` in its barebones mode, which has all that is optional switched off, and whole batches from the loader."""
    torch.manual_seed(42)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    model, (rows, validation) = LightningLinear(), in_memory(work)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=EPOCHS, barebones=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to use worker processes: on one thread they only cost
        trainer.fit(model, whole_batches(rows, work.batch), whole_batches(validation, VALIDATION_BATCH, shuffle=False))
    return Trained(model.ends[-1] - model.ends[-2], model.loss, model.squares / len(validation))


def skorch_net(work: Work) -> Trained:
    """`NeuralNetRegressor` without its callbacks, and whole batches from the loader."""
    torch.manual_seed(42)
    rows, validation = in_memory(work)
    net = NeuralNetRegressor(
        nn.Linear,
        module__in_features=4,
        module__out_features=1,
        optimizer=torch.optim.SGD,
        lr=LEARNING_RATE,
        batch_size=work.batch,
        iterator_train=whole_batches,
        iterator_valid=whole_batches,
        iterator_valid__batch_size=VALIDATION_BATCH,
        iterator_valid__shuffle=False,
        train_split=predefined_split(validation),
        callbacks="disable",
        verbose=0,
    ).initialize()

    def epoch() -> tuple[float, float]:
        net.fit_loop(rows, epochs=1)
        batches = net.history[-1]["batches"]
        train_losses = [batch["train_loss"] for batch in batches if "train_loss" in batch]
        sums = [(batch["valid_loss"] * batch["valid_batch_size"]) for batch in batches if "valid_loss" in batch]
        return float(np.mean(train_losses)), sum(sums) / len(validation)

    return train(epoch)


def hugging_face(work: Work) -> Trained:
    """`datasets`: rows in a memory-mapped Arrow file, a batch a request, made tensors here.

    Its own format "torch" takes several times as long to do that.
    """
    columns = datasets.Features({"x": datasets.Sequence(datasets.Value("float32"), length=4), "y": datasets.Value("float32")})
    x, y, validation_x, validation_y = work.arrays
    with tempfile.TemporaryDirectory() as folder:

        def stored(name: str, rows: NDArray[Any], target: NDArray[Any]) -> Any:
            whole = datasets.Dataset.from_dict({"x": rows, "y": target[:, 0]}, columns)
            whole.save_to_disk(f"{folder}/{name}")
            return datasets.load_from_disk(f"{folder}/{name}").with_format("arrow")

        def pairs(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in loader:
                flat, target = batch["x"].combine_chunks().flatten().to_numpy(), batch["y"].to_numpy()
                yield torch.tensor(flat).view(-1, 4), torch.tensor(target).view(-1, 1)

        datasets.disable_progress_bars()
        rows, held = stored("train", x, y), stored("validation", validation_x, validation_y)
        loader, validation = whole_batches(rows, work.batch), whole_batches(held, VALIDATION_BATCH, shuffle=False)
        return train_loop(lambda: pairs(loader), list(pairs(validation)))


def tensordict_memmap(work: Work) -> Trained:
    """A memory-mapped `TensorDict`, a batch by an index tensor, without a loader, which would be slower."""
    with tempfile.TemporaryDirectory() as folder:
        rows = TensorDict({"x": work.x, "y": work.y}, batch_size=[len(work.x)]).memmap(f"{folder}/train")
        held = TensorDict({"x": work.validation_x, "y": work.validation_y}, batch_size=[len(work.validation_x)])
        held = held.memmap(f"{folder}/validation")

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for index in torch.randperm(len(rows)).split(work.batch):
                batch = rows[index]
                yield batch["x"], batch["y"]

        return train_loop(batches, [(batch["x"], batch["y"]) for batch in held.split(VALIDATION_BATCH)])


PEERS: dict[str, Callable[[Work], Trained]] = {
    "tutorial's loop": tutorial,
    "NumPy loop": numpy_loop,
    "scikit-learn SGDRegressor": scikit_learn,
    "Lightning": lightning_trainer,
    "skorch": skorch_net,
    "Hugging Face datasets": hugging_face,
    "tensordict memmap": tensordict_memmap,
}
