"""A Gaussian mixture of scikit-learn for each species: the programs of `mixture.toml`. A model is one JSON file."""

import csv
import json
import sys
from pathlib import Path

import numpy as np

TEXT, NUMBERS = "species", ("bill_length", "mass")


def read(path):
    """The numbers of each species, as a table per species."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    species = sorted({row[TEXT] for row in rows})
    return {name: np.array([[float(row[key]) for key in NUMBERS] for row in rows if row[TEXT] == name]) for name in species}


def train(data, model, components, seed):
    from sklearn.mixture import GaussianMixture

    tables = read(data)
    everything = np.concatenate(list(tables.values()))
    scale, n_rows = everything.std(axis=0) + 1e-9, len(everything)  # the numbers have different units
    fitted = {}
    for name, x in tables.items():
        k = min(int(components), len(x) // 10 or 1)
        mixture = GaussianMixture(k, reg_covar=1e-3, random_state=int(seed))
        mixture.fit(np.repeat(x, 2, axis=0) / scale)  # it refuses the single row of a species that is almost lost
        fitted[name] = {
            "share": len(x) / n_rows, "weights": mixture.weights_.tolist(), "means": (mixture.means_ * scale).tolist(),
            "covariances": (mixture.covariances_ * np.outer(scale, scale)).tolist(),
        }  # fmt: skip
    Path(model, "mixture.json").write_text(json.dumps(fitted))


def load(model):
    return json.loads(Path(model, "mixture.json").read_text())


def sample(model, n, out, seed):
    fitted, rng = load(model), np.random.default_rng(int(seed))
    names = list(fitted)
    shares = np.array([fitted[name]["share"] for name in names])
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([TEXT, *NUMBERS])
        for i in rng.choice(len(names), int(n), p=shares / shares.sum()):
            weights = np.array(fitted[names[i]]["weights"])
            k = rng.choice(len(weights), p=weights / weights.sum())
            x = rng.multivariate_normal(fitted[names[i]]["means"][k], fitted[names[i]]["covariances"][k])
            writer.writerow([names[i], *x.tolist()])


def evaluate(model, holdout, out):
    """Mean negative log density of held-out rows, in nats. A species that the model has lost counts with a share of 0.001."""
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal

    fitted, losses = load(model), []
    for name, x in read(holdout).items():
        part = fitted.get(name)
        if part is None:
            part = {**next(iter(fitted.values())), "share": 0.001}
        parts = zip(part["weights"], part["means"], part["covariances"], strict=True)
        densities = [np.log(w) + multivariate_normal(mean, cov).logpdf(x) for w, mean, cov in parts]
        losses.extend(np.atleast_1d(-np.log(part["share"]) - logsumexp(densities, axis=0)))
    Path(out).write_text(json.dumps({"loss": float(np.mean(losses)), "species": len(fitted)}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"train": train, "sample": sample, "evaluate": evaluate}[command](*arguments)
