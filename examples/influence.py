"""Influence judged as the field judges it: by retraining without some of the data.

    python examples/influence.py            # one core, some minutes
    python examples/influence.py --tiny     # seconds, to try that all works

A classifier of digits with 1,210 weights is trained on all of its rows, and again on each of many
random halves of them. An attribution τ[row, query] says by how much the loss of a query changes
when a row is weighed more; of a half of the rows, Σ τ. The linear datamodelling score is the rank
correlation of that sum with the loss that the retrained model has, over the halves, averaged over
the queries. It is 1 for a perfect attribution and 0 for chance. No method gets 1 here, as losses
are not linear in the rows.

Compared are the Bayesian influence function from one set of chains (no gradient of a row is ever
taken), the damped influence function with the exact Hessian, which it becomes as nβ grows,
gradients' similarity, which it becomes as nβ → 0, and TRAK with random projections.

Reference: Park et al. (2023), TRAK: attributing model behavior at scale, arXiv 2303.14186.
"""

# %% What is asked for
import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

import rllc

HIDDEN, CLASSES = 16, 10


@dataclass(frozen=True)
class Scale:
    """How much is trained, and how chains are sampled."""

    num_train: int = 150
    num_queries: int = 60
    num_halves: int = 160
    num_steps: int = 300
    """Of training, with all rows at each step."""
    num_seeds: int = 3
    num_chains: int = 12
    num_draws: int = 400
    num_projections: int = 512
    n_beta: float = 300.0
    localization: float = 30.0
    lr: float = 2e-3


TINY = Scale(24, 6, 8, 20, 2, 2, 8, 8)
WEIGHT_DECAY = 3e-3

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """Images and what they show."""

    x: Tensor
    y: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> "Rows":
        return Rows(self.x[chosen], self.y[chosen])


# %% Data, model and loss
def digits(scale: Scale, seed: int) -> tuple[Rows, Rows]:
    """Training rows and queries, of the data set that scikit-learn ships."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(pixels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    rows = Rows(x - x.mean(0), torch.tensor(labels[order]))
    queries = slice(scale.num_train, scale.num_train + scale.num_queries)
    return rows[: scale.num_train], rows[queries]


def classifier(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of each row."""
    inputs, labels = batch
    return F.cross_entropy(module(inputs), labels, reduction="none")


# %% Training many models at once, each on its own rows
def train(start: nn.Module, rows: Rows, shares: Tensor, num_steps: int) -> Weights:
    """Models trained from one start, as stacked parameters.

    Args:
        shares: ``[model, row]``: how much each row counts, of sum 1.
    """
    stacked = {}
    for name, parameter in start.named_parameters():
        copies = parameter.detach().expand(len(shares), *parameter.shape)
        stacked[name] = copies.clone().requires_grad_()
    optimizer = torch.optim.Adam(list(stacked.values()), lr=0.02)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / num_steps)
        losses = losses_of(stacked, rows)
        decay = sum((p**2).sum() for p in stacked.values())
        objective = (losses * shares).sum() + WEIGHT_DECAY / 2 * decay
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in stacked.items()}


def losses_of(stacked: Weights, rows: Rows) -> Tensor:
    """``[model, row]``."""
    hidden = rows.x @ stacked["0.weight"].mT + stacked["0.bias"][:, None]
    logits = torch.tanh(hidden) @ stacked["2.weight"].mT + stacked["2.bias"][:, None]
    labels = rows.y.expand(len(logits), -1)
    return F.cross_entropy(logits.mT, labels, reduction="none")


# %% Attributions: by how much the loss of a query changes when a row is weighed more
def flat(tree: Weights, lead: int) -> Tensor:
    return torch.cat([tensor.flatten(lead) for tensor in tree.values()], dim=lead)


def per_row(model: nn.Module, value: Callable[[Tensor, Tensor], Tensor], rows: Rows) -> Tensor:
    """Gradients of a function of logits and label, ``[row, weight]``."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_row(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return value(functional_call(model, weights, (x[None],))[0], y)

    gradients = vmap(grad(of_row), (None, 0, 0))(parameters, rows.x, rows.y)
    return flat(gradients, 1)


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """log p/(1 − p) of the right class."""
    log_p = F.log_softmax(logits, 0).gather(0, label[None])[0]
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


def bayesian(model: nn.Module, rows: Rows, queries: Rows, scale: Scale, seed: int) -> np.ndarray:
    """−Cov(ℓ_row, ℓ_query) over chains around the weights."""
    result = rllc.influence(
        model,
        (rows.x, rows.y),
        (rows.x, rows.y),
        (queries.x, queries.y),
        rllc.everything(),
        loss=cross_entropy,
        sampler=rllc.sgld(lr=scale.lr, localization=scale.localization),
        sampling=rllc.Sampling(
            num_chains=scale.num_chains,
            num_draws=scale.num_draws,
            num_burnin_steps=scale.num_draws // 2,
            num_steps_bw_draws=4,
            batch_size=len(rows.x),
            n_beta=scale.n_beta,
            num_probes=0,
            seed=seed,
        ),
    )
    print(result)
    return result.value[0]


def damped(model: nn.Module, rows: Rows, queries: Rows, scale: Scale) -> np.ndarray:
    """−g_row (H + γ/nβ)⁻¹ g_query, with the exact Hessian of the mean loss."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    shapes = [parameter.shape for parameter in parameters.values()]
    sizes = [parameter.numel() for parameter in parameters.values()]

    def mean_loss(vector: Tensor) -> Tensor:
        pieces = vector.split(sizes)
        weights = {n: p.view(s) for n, p, s in zip(parameters, pieces, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (rows.x,)), rows.y)

    H = jacrev(grad(mean_loss), chunk_size=128)(flat(parameters, 0)).double()
    # Negative curvature, of which little is left in a trained model, would make no sense here.
    values, vectors = torch.linalg.eigh(H)
    precision = values.clamp(min=0.0) + scale.localization / scale.n_beta
    of_rows = gradients_of_loss(model, rows).double() @ vectors
    of_queries = gradients_of_loss(model, queries).double() @ vectors
    return -((of_rows / precision) @ of_queries.T).numpy()


def gradients_of_loss(model: nn.Module, rows: Rows) -> Tensor:
    return per_row(model, lambda logits, y: F.cross_entropy(logits, y), rows)


def similarity(model: nn.Module, rows: Rows, queries: Rows) -> np.ndarray:
    """−g_row · g_query."""
    return -(gradients_of_loss(model, rows) @ gradients_of_loss(model, queries).T).numpy()


def trak(model: nn.Module, rows: Rows, queries: Rows, scale: Scale, seed: int) -> np.ndarray:
    """−(1 − p_row) φ_row (ΦᵀΦ)⁻¹ φ_query, φ being projected gradients of the margin."""
    of_rows, of_queries = per_row(model, margin, rows), per_row(model, margin, queries)
    stream = torch.Generator().manual_seed(seed)
    shape = (of_rows.shape[1], scale.num_projections)
    projection = torch.randn(shape, generator=stream) / shape[1] ** 0.5
    phi, phi_of_queries = of_rows @ projection, of_queries @ projection
    with torch.no_grad():
        p = F.softmax(model(rows.x), 1).gather(1, rows.y[:, None])
    kernel = phi.T @ phi
    kernel += 1e-4 * kernel.trace() / len(kernel) * torch.eye(len(kernel))
    return -((1 - p) * (phi @ torch.linalg.solve(kernel, phi_of_queries.T))).numpy()


# %% The linear datamodelling score
def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the first axis; ties do not occur."""
    return values.argsort(0).argsort(0).astype(float)


def score(attribution: np.ndarray, halves: np.ndarray, losses: np.ndarray) -> float:
    """Mean over queries of the rank correlation over halves.

    Args:
        attribution: ``[row, query]``.
        halves: ``[half, row]``, 1 where a row was trained on.
        losses: ``[half, query]``, of the retrained models.
    """
    predicted, found = ranks(halves @ attribution), ranks(losses)
    predicted -= predicted.mean(0)
    found -= found.mean(0)
    lengths = np.sqrt((predicted**2).sum(0) * (found**2).sum(0))
    return float(((predicted * found).sum(0) / lengths).mean())


def one_seed(scale: Scale, seed: int) -> dict[str, float]:
    rows, queries = digits(scale, seed)
    stream = np.random.default_rng(seed)
    halves = np.zeros((scale.num_halves, scale.num_train))
    for half in halves:
        half[stream.permutation(scale.num_train)[: scale.num_train // 2]] = 1
    start = classifier(seed)
    shares = torch.tensor(halves / halves.sum(1, keepdims=True), dtype=torch.float32)
    losses = losses_of(train(start, rows, shares, scale.num_steps), queries).numpy()
    whole = train(
        start, rows, torch.full((1, scale.num_train), 1 / scale.num_train), scale.num_steps
    )
    model = classifier(seed)
    model.load_state_dict({name: parameter[0] for name, parameter in whole.items()})
    model.eval()
    attributions = {
        "Bayesian influence": bayesian(model, rows, queries, scale, seed),
        "damped influence, exact Hessian": damped(model, rows, queries, scale),
        "similarity of gradients": similarity(model, rows, queries),
        "TRAK": trak(model, rows, queries, scale, seed),
        "chance": stream.standard_normal((scale.num_train, scale.num_queries)),
    }
    return {name: score(value, halves, losses) for name, value in attributions.items()}


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="seconds, to try that all works")
    scale = TINY if parser.parse_args(argv).tiny else Scale()
    begin = time.perf_counter()
    scores: dict[str, list[float]] = {}
    for seed in range(scale.num_seeds):
        for name, value in one_seed(scale, seed).items():
            scores.setdefault(name, []).append(value)
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s so far")
    print(f"\n{'attribution':34}linear datamodelling score (± se over {scale.num_seeds} seeds)")
    for name, values in scores.items():
        error = np.std(values, ddof=1) / len(values) ** 0.5
        print(f"{name:34}{np.mean(values):.3f} ± {error:.3f}")
    return scores


if __name__ == "__main__":
    main()
