"""What the default pipeline does, as one plain script in one process: the peer of benchmarks/pipeline.py.

Draws the data, splits it, trains the tutorial's way, compares with least squares, makes two pictures, and logs to an MLflow
store of its own, all in the current folder.
"""

import matplotlib as mpl
import mlflow
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

mpl.use("Agg")
import matplotlib.pyplot as plt

ROWS, EPOCHS, BATCH, LEARNING_RATE = 1000, 50, 16, 0.05


def main() -> None:
    """Do all of it."""
    torch.manual_seed(42)
    torch.set_num_threads(1)
    generator = np.random.default_rng(42)
    x = generator.uniform(size=ROWS)
    pd.DataFrame({"x1": x, "y": 1 + 2 * x + 0.1 * generator.standard_normal(ROWS)}).to_csv("synthetic.csv", index=False)

    table = torch.tensor(pd.read_csv("synthetic.csv").to_numpy(), dtype=torch.float32)
    train, validation, test = random_split(TensorDataset(table[:, :1], table[:, 1:]), [0.8, 0.1, 0.1])
    rows = torch.cat(train[:], dim=1)
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
    scaled = TensorDataset(*((table - mean) / std).split(1, dim=1))
    train_loader = DataLoader(Subset(scaled, train.indices), BATCH, shuffle=True)
    validation_loader = DataLoader(Subset(scaled, validation.indices), BATCH)

    model, loss_function = nn.Linear(1, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    unit = float(std[1] ** 2)  # of a loss, in that of the data
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("plain")
    history = []
    with mlflow.start_run():
        mlflow.log_params({"rows": ROWS, "epochs": EPOCHS, "batch_size": BATCH, "lr": LEARNING_RATE, "optimizer": "sgd"})
        for epoch in range(1, EPOCHS + 1):
            model.train()
            losses = []
            for features, target in train_loader:
                loss = loss_function(model(features), target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            model.eval()
            with torch.no_grad():
                held = [loss_function(model(features), target).item() for features, target in validation_loader]
            schedule.step()
            history.append({"train_loss": unit * float(np.mean(losses)), "validation_loss": unit * float(np.mean(held))})
            mlflow.log_metrics(history[-1], step=epoch)
        torch.save(model.state_dict(), "model.pt")
        mlflow.log_artifact("model.pt")

        features, target = train[:]
        line = np.linalg.lstsq(np.column_stack([np.ones(len(features)), features]), target[:, 0].numpy(), rcond=None)[0]
        features, target = (values.numpy()[:, 0] for values in test[:])
        with torch.no_grad():
            predicted = (model((torch.from_numpy(features)[:, None] - mean[0]) / std[0]) * std[1] + mean[1]).numpy()[:, 0]
        best = line[0] + line[1] * features
        scores = {"test_mse": float(((predicted - target) ** 2).mean()), "best_mse": float(((best - target) ** 2).mean())}
        mlflow.log_metrics(scores)

        pd.DataFrame(history).plot(logy=True, xlabel="epoch", ylabel="mean loss of a row")
        plt.savefig("loss.png", dpi=120)
        order = features.argsort()
        _, axes = plt.subplots()
        axes.scatter(features, target, s=10, color="0.6")
        axes.plot(features[order], predicted[order])
        axes.plot(features[order], best[order], linestyle=":")
        plt.savefig("fit.png", dpi=120)
        for name in ("loss.png", "fit.png"):
            mlflow.log_artifact(name)
    print(scores)


if __name__ == "__main__":
    main()
