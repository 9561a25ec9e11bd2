"""How right the estimates are: every problem with an exact truth, beside devinterp 2.0.1 on the same problem.

    python examples/benchmarks/accuracy.py            # one CPU core, below 10 minutes; needs scipy, devinterp==2.0.1

Prints a table; the folder of ``--out`` gets it as ``accuracy.md`` and ``accuracy.csv``, then says what of it holds. One row
a problem, sampler and library: truth, estimate, standard error, z = (estimate − truth)/error, relative error, and seconds
of CPU time. Batches are full, so chains have no minibatches in common, and errors are ``rllc.diagnostics.mcse``.

Two kinds of truth
------------------
``law``: what λ̂ is at these very settings. For quadratics and for single layers of linear networks it is
:class:`rllc.theory.SGLDLaw`, step size and start included (rmsprop_sgld: with the scales that its chains came to hold; the
samplers without an error of the step size: at ε → 0). For normal crossings in a box and for reduced-rank regression
around zero it is E[nβ ℓ] under p(v) ∝ exp(−nβ ℓ) × prior, by quadrature: exact for mala and hmc, whereas the others add
an error of their step size, which nobody knows in closed form off quadratics and which is kept small here. Judged by z.

``λ``: the learning coefficient, which no finite nβ has. λ̂ is then taken at three or four nβ and extrapolated: log Z has the
leading term −λ log nβ + (m − 1) log log nβ, so that

- multiplicity m = 1: λ̂(nβ) = λ + b nβ^−p, the next pole being a power away; λ, b and p are fitted;
- m > 1: λ̂(nβ) = λ − (m − 1)/(log nβ + c); λ and c are fitted. Where that does not fit (χ² beyond 1e-3: the asymptotic
  regime is not reached), the first form is used.

The fit is told m, not λ. Its error covers noise, not the form. Problems whose minimum is regular need no extrapolation: one
large nβ, and a localization that is weak against it. Judged by the relative error.

Some problems are many independent copies in one module, whose losses and so λs add; all numbers are for one copy. Copies make
a chain worth many, for every library.

What devinterp is given
-----------------------
The same module, data, nβ, localization or box, and the lr of the sgld and rmsprop_sgld rows beside it; full batches, so that
taking its baseline from other batches costs it nothing; 4 chains, its default, of 500 steps (its default is 200), 1000 on
the small quadratic and for the head, 300 on each single layer, 50 where a step takes long. That is about as much CPU time as
rllc's sgld takes (a ladder takes several times as much), but fewer draws, as its chains run one after another. The value is
that of its own ``llc``, which averages over all steps from w* on, burn-in included; so where chains settle slowly most of its
error is that they have not, and where rllc was given a burn-in it has an advantage. Its truth in a law row is that of rllc's
row; for its sgld that of settled chains at this lr.

It has no box with reflecting walls: its ``bounding_box_size`` clamps. And it has nothing to extrapolate with: a λ row of it is
its value at the one nβ that the row names, chosen low enough that its chains move within their steps.

All settings were chosen with the truths in view, as one chooses an instrument's; ``--seed 1`` is a run they were not chosen on.
"""

# %% What is asked for
import argparse
import contextlib
import csv
import functools
import importlib.util
import io
import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import rllc
from rllc import theory
from rllc.seeds import generator

MOST_Z, MOST_ERROR, MOST_RELATIVE = 4.0, 0.01, 0.05  # what is judged


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/accuracy"), help="output folder")
    parser.add_argument(
        "--parts",
        default="qcrplna",
        help="of: quadratics, crossings, reduced rank, places, layers, networks, attention",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--without-devinterp", action="store_true", help="rllc's rows only")
    parser.add_argument(
        "--tiny", action="store_true", help="a hundredth of the draws, to see that it runs"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args, begin = arguments(argv), time.perf_counter()
    torch.set_num_threads(1)  # small matrices: a second thread slows them down
    if not args.without_devinterp and importlib.util.find_spec("devinterp") is None:
        raise SystemExit(
            "comparing with devinterp: it is not installed; type: pip install devinterp==2.0.1, or --without-devinterp"
        )
    parts = {
        "q": quadratics,
        "c": crossings,
        "r": reduced_rank,
        "p": places,
        "l": layers,
        "n": networks,
        "a": attention,
    }
    table = []
    print(line(COLUMNS))
    for letter in args.parts:
        for row in parts[letter](args):
            table.append(row)
            print(line(row.cells), flush=True)
    seconds = time.perf_counter() - begin
    words = verdict(table)
    print(f"\n{words}\n{seconds:.0f} s in all")
    write(table, words, args.out)
    return table


# %% Rows
COLUMNS = [
    "problem",
    "sampler",
    "library",
    "settings",
    "kind",
    "truth",
    "estimate",
    "± se",
    "z",
    "error",
    "seconds",
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    problem: str
    sampler: str
    library: str
    settings: str
    kind: str  # "law" or "λ"
    truth: float
    estimate: float
    error: float
    seconds: float

    @property
    def z(self):
        """How many standard errors the estimate is off."""
        return (self.estimate - self.truth) / self.error

    @property
    def relative(self):
        """By what share of the truth it is off."""
        return self.estimate / self.truth - 1

    @property
    def cells(self):
        """As printed; z of law rows only, since a λ row's error leaves out that of its form."""
        z = f"{self.z:+.2f}" if self.kind == "law" else ""
        numbers = [
            f"{self.truth:.5g}",
            f"{self.estimate:.5g}",
            f"{self.error:.2g}",
            z,
            f"{100 * self.relative:+.2f} %",
        ]
        return [
            self.problem,
            self.sampler,
            self.library,
            self.settings,
            self.kind,
            *numbers,
            f"{self.seconds:.1f}",
        ]


def line(cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


def verdict(table):
    """What holds of what is judged, in words."""
    mine = [row for row in table if row.library == "rllc"]
    laws, lambdas = ([row for row in mine if row.kind == kind] for kind in ("law", "λ"))
    rivals = {
        row.problem: [
            r for r in table if r.library != "rllc" and r.kind == "λ" and r.problem == row.problem
        ]
        for row in lambdas
    }
    checks = {
        f"|z| < {MOST_Z:g}": (laws, lambda r: abs(r.z) < MOST_Z),
        f"standard error ≤ {MOST_ERROR:.0%}": (
            laws,
            lambda r: r.error <= MOST_ERROR * abs(r.truth),
        ),
        f"relative error ≤ {MOST_RELATIVE:.0%}": (
            lambdas,
            lambda r: abs(r.relative) <= MOST_RELATIVE,
        ),
        "nearer to λ than devinterp": (
            [r for r in lambdas if rivals[r.problem]],
            lambda r: all(not abs(o.relative) <= abs(r.relative) for o in rivals[r.problem]),
        ),
    }
    said = []
    for what, (rows, holds) in checks.items():
        failing = [f"{r.problem}, {r.sampler}" for r in rows if not holds(r)]
        kind = rows[0].kind if rows else "no"
        said.append(
            f"{kind} rows, {what}: {len(rows) - len(failing)} of {len(rows)}"
            + "".join(f"; not {f}" for f in failing)
        )
    return "\n".join(said)


def write(table, words, out):
    out.mkdir(parents=True, exist_ok=True)
    lines = [line(COLUMNS), line(["---"] * len(COLUMNS)), *(line(row.cells) for row in table)]
    (out / "accuracy.md").write_text("\n".join(lines) + f"\n\n{words}\n")
    with open(out / "accuracy.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Row.__dataclass_fields__, "z", "relative"])
        writer.writerows([*vars(row).values(), row.z, row.relative] for row in table)


# %% Problems: each module gives its loss for each row of its data, and is at its minimum
class Quadratic(nn.Module):
    """ℓ = ½ Σ h v²."""

    def __init__(self, curvatures):
        super().__init__()
        self.v = nn.Parameter(torch.zeros(len(curvatures)))
        self.register_buffer("h", torch.as_tensor(curvatures, dtype=torch.float32))

    def forward(self, rows):  # noqa: D102
        return 0.5 * (self.h * self.v**2).sum().expand(len(rows))


class NormalCrossing(nn.Module):
    """ℓ = Σ over copies of Π_i w_i^(2k_i). Losses of copies add, so λ does: copies only make one chain worth many."""

    def __init__(self, k, copies):
        super().__init__()
        self.k, self.copies = tuple(k), copies
        self.w = nn.Parameter(torch.zeros(len(k), copies))

    def forward(self, rows):  # noqa: D102
        return (
            math.prod(w ** (2 * k) for w, k in zip(self.w, self.k, strict=True))
            .sum()
            .expand(len(rows))
        )


class ReducedRank(nn.Module):
    """ℓ = Σ over copies of ½‖(BA − B*A*) x‖² for each input x."""

    def __init__(self, A, B, copies):
        super().__init__()
        self.A, self.B = (nn.Parameter(W.expand(copies, *W.shape).clone()) for W in (A, B))
        self.register_buffer("truth", B @ A)

    def forward(self, x):  # noqa: D102
        return 0.5 * ((self.B @ (self.A @ x.T)) - self.truth @ x.T).square().sum((0, 1))


class LinearNetwork(nn.Module):
    """ℓ = ½‖(W_L ⋯ W_1 − W*_L ⋯ W*_1) x‖² for each input x; with :func:`whitened` inputs the mean is ½‖W − W*‖²_F."""

    def __init__(self, weights):
        super().__init__()
        self.W = nn.ParameterList(
            nn.Parameter(torch.as_tensor(w, dtype=torch.float32)) for w in weights
        )
        self.register_buffer("truth", product([w.detach() for w in self.W]))

    def forward(self, x):  # noqa: D102
        y = x
        for W in self.W:
            y = y @ W.T
        return 0.5 * (y - x @ self.truth.T).square().sum(1)


class OneHead(nn.Module):
    """One causal attention head over one-hot tokens; KL(uniform ‖ softmax) at every position. W_V = W_O = 0 is a minimum."""

    def __init__(self, v, d_head, seed=0):
        super().__init__()
        stream = generator("one head", seed)
        for name in ("W_Q", "W_K"):
            self.register_parameter(name, nn.Parameter(torch.randn(v, d_head, generator=stream)))
        self.W_V, self.W_O = (
            nn.Parameter(torch.zeros(v, d_head)),
            nn.Parameter(torch.zeros(d_head, v)),
        )
        self.v, self.d_head = v, d_head

    def forward(self, tokens):  # noqa: D102
        x = F.one_hot(tokens, self.v).float()  # [row, pos, token]
        scores = (x @ self.W_Q) @ (x @ self.W_K).mT / math.sqrt(self.d_head)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        z = scores.masked_fill(future, -torch.inf).softmax(-1) @ (x @ self.W_V)
        return -(z @ self.W_O).log_softmax(-1).mean(-1) - math.log(self.v)


def product(weights):
    done = weights[0]
    for W in weights[1:]:
        done = W @ done
    return done


def whitened(width):
    """Inputs √width·e_i: their mean of x xᵀ is the identity."""
    return math.sqrt(width) * torch.eye(width)


def aligned(widths, rank):
    """Every layer diag(1_rank, 0): the deepest point of the fibre, where the local λ is the global one."""
    weights = [torch.zeros(outputs, inputs) for inputs, outputs in itertools.pairwise(widths)]
    for W in weights:
        W[range(rank), range(rank)] = 1
    return weights


def placed(M, N, H, r1, r2, r):
    """A [H, M] of rank r1 and B [N, H] of rank r2, ones and zeros, whose product has rank r."""
    A, B = torch.zeros(H, M), torch.zeros(N, H)
    A[range(r1), range(r1)] = 1
    B[range(r2), [*range(r), *range(r1, r1 + r2 - r)]] = 1  # shares r directions with A's image
    return [A, B]


def random_layers(widths, ranks, seed=0):
    """Layers of the given ranks with singular values from 0.7 to 1.4 and random directions."""
    stream, weights = generator("random layers", seed), []
    for (inputs, outputs), rank in zip(itertools.pairwise(widths), ranks, strict=True):
        left, right = (
            torch.linalg.qr(torch.randn(n, rank, generator=stream))[0] for n in (outputs, inputs)
        )
        weights.append(left @ torch.diag(torch.linspace(0.7, 1.4, rank)) @ right.T)
    return weights


# %% Exact values at finite nβ
def crossing_law(k, n_beta, half_width=1.0):
    """E[nβ Π w^(2k)] under a uniform prior in the box: Gauss-Legendre in log w, where the integrand is smooth."""
    u, log_mass = log_grid(
        math.log(half_width), 35.0 if len(k) == 2 else 28.0, 500 if len(k) == 2 else 160
    )
    exponent = outer_sum([2 * k_i * u for k_i in k])
    return expectation(
        n_beta * np.exp(exponent), outer_sum([log_mass + u] * len(k)) - n_beta * np.exp(exponent)
    )


def reduced_rank_law(M, N, H, n_beta, localization):
    """E[nβ ½‖BA‖²] under p ∝ exp(−nβ ½‖BA‖² − (γ/2)(‖A‖² + ‖B‖²)), for min(M, H) ≤ 3.

    Given A, B is Gaussian and integrates to det(γ + nβ AAᵀ)^(−N/2), with E[nβ ½‖BA‖² | A] = ½N Σ nβ s/(γ + nβ s) in the
    eigenvalues s of AAᵀ. Those of a Gaussian A have density Π s^((|M−H|−1)/2) e^(−γs/2) Π_{i<j} |s_i − s_j| (Wishart).
    """
    rank, more = min(M, H), abs(M - H)
    u, log_mass = log_grid(
        math.log(80 / localization), 30.0 if rank < 3 else 24.0, {1: 2000, 2: 500, 3: 140}[rank]
    )
    s = np.exp(u)
    each = (
        log_mass
        + u * (more + 1) / 2
        - localization * s / 2
        - N / 2 * np.log1p(n_beta * s / localization)
    )
    log_density = outer_sum([each] * rank)
    for i, j in itertools.combinations(range(rank), 2):
        apart = np.abs(axis(s, i, rank) - axis(s, j, rank))
        log_density = log_density + np.log(np.where(apart > 0, apart, 1e-300))
    return expectation(
        outer_sum([N / 2 * n_beta * s / (localization + n_beta * s)] * rank), log_density
    )


def log_grid(top, length, points):
    """Nodes u in [top − length, top] and the logarithms of their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return top + (nodes - 1) / 2 * length, np.log(weights * length / 2)


def axis(values, i, axes):
    return values.reshape([-1 if j == i else 1 for j in range(axes)])


def outer_sum(parts):
    return sum(axis(part, i, len(parts)) for i, part in enumerate(parts))


def expectation(values, log_density):
    density = np.exp(log_density - log_density.max())
    return float((values * density).sum() / density.sum())


def quadratic_target(curvatures, n_beta, localization, lr=0.0):
    """λ̂ on ½ Σ h v², of settled sgld chains at ``lr``, and for lr → 0 of every sampler's."""
    a = n_beta * curvatures + localization
    return float((0.5 * n_beta * curvatures / (a * (1 - lr * a / 4))).sum())


def quadratic_law(curvatures, sampler, n_beta, counts, kept):
    """λ̂ on ½ Σ h v²: of sgld at its step size and from its start on, of rmsprop_sgld with the scales in its last state."""
    gamma, h = sampler.localization, curvatures[curvatures > 0]
    if sampler.name == "sgld":
        between = {name: counts[name] for name in ("num_burnin_steps", "num_steps_bw_draws")}
        return theory.SGLDLaw(h, sampler.lr, gamma, n_beta).expected(counts["num_draws"], **between)
    if sampler.name != "rmsprop_sgld":
        return quadratic_target(h, n_beta, gamma)
    options, a = sampler.options, n_beta * h + gamma
    square = kept[-1].square.double().numpy() / (
        1 - options["alpha"] ** options["num_adaptation_steps"]
    )
    rate = sampler.lr * a / (np.sqrt(square) + options["eps"])  # εGa [chain, dim]
    return float((0.5 * n_beta * h / (a * (1 - rate / 4))).sum(1).mean())


# %% Estimates: ours and theirs
@dataclass(frozen=True)
class Problem:
    """A module at a minimum, its data, the prior around it, and what is known of it."""

    name: str
    model: nn.Module
    data: torch.Tensor
    prior: rllc.Prior
    truth: theory.LearningCoefficient | None = None
    law: Callable[[float, float], float] | None = (
        None  # λ̂ at a finite nβ, and at an lr of sgld where that is known
    )
    copies: int = 1  # λ and λ̂ are given for one
    moving: str | None = None  # the parameter that moves; all

    def settings(self, n_beta, lr):
        """The numbers that a row is made with."""
        box = self.prior.half_width
        prior = f"γ={self.prior.localization:g}" if box == math.inf else f"box {box:g}"
        return f"nβ={n_beta:g}, {prior}, ε={lr:g}"


def loss_of(module, rows):
    return module(rows)


def ours(args, model, data, sampler, n_beta, weights=None, **counts):
    """λ̂ and its standard error, each [refinement], and CPU seconds. ``counts`` are those of :class:`rllc.Sampling`."""
    rows = len(next(iter(data.values())) if isinstance(data, dict) else data)
    sampling = rllc.Sampling(
        batch_size=rows, n_beta=n_beta, seed=args.seed, num_probes=0, **scaled(args, counts)
    )
    begin = time.process_time()
    draws = rllc.sample(
        model, data, weights, loss=loss_of, sampler=sampler, sampling=sampling, progress=False
    )
    seconds = time.process_time() - begin
    return draws.llc.mean((1, 2)), rllc.diagnostics.mcse(draws.llc), seconds


def scaled(args, counts):
    """A fiftieth of the draws, chains and burn-in with ``--tiny``."""
    if not args.tiny:
        return counts
    return {k: v if k == "num_steps_bw_draws" else max(4, v // 50) for k, v in counts.items()}


def counted(chains, draws, burnin, apart=1):
    return {
        "num_chains": chains,
        "num_draws": draws,
        "num_burnin_steps": burnin,
        "num_steps_bw_draws": apart,
    }


def remembering(sampler):
    """The same sampler, and a list that always holds its last state."""
    kept = []

    def step(state, energy, random):
        kept[:] = [sampler.step(state, energy, random)]
        return kept[0]

    return replace(sampler, step=step), kept


def law_rows(args, problem, n_beta, samplers):
    """λ̂ of each sampler beside the problem's law at ``n_beta``; ``samplers`` maps them to their counts."""
    for sampler, counts in samplers.items():
        value, error, seconds = ours(args, problem.model, problem.data, sampler, n_beta, **counts)
        value, error = float(value[0]) / problem.copies, float(error[0]) / problem.copies
        how = problem.settings(n_beta, sampler.lr)
        yield Row(
            problem.name,
            sampler.name,
            "rllc",
            how,
            "law",
            problem.law(n_beta, 0.0),
            value,
            error,
            seconds,
        )


def ladder(args, problem, rungs, make, counts):
    """λ̂ at each nβ of ``rungs`` by ``make(nβ)``, a law row each if there is a law; then the λ row made of all."""
    values, errors, whole = [], [], 0.0
    for n_beta in rungs:
        sampler = make(n_beta)
        value, error, seconds = ours(args, problem.model, problem.data, sampler, n_beta, **counts)
        values.append(float(value[0]) / problem.copies)
        errors.append(float(error[0]) / problem.copies)
        whole += seconds
        if problem.law is not None:
            how, law = problem.settings(n_beta, sampler.lr), problem.law(n_beta, 0.0)
            yield Row(
                problem.name, sampler.name, "rllc", how, "law", law, values[-1], errors[-1], seconds
            )
    value, error, form = values[-1], errors[-1], "as it is"
    if len(rungs) > 1:
        value, error, form = extrapolate(rungs, values, errors, problem.truth.multiplicity)
    how = problem.settings(rungs[-1], sampler.lr).replace(
        f"{rungs[-1]:g}", " ".join(f"{n:g}" for n in rungs), 1
    )
    how = f"{how.rpartition(', ')[0]}, {form}"
    yield Row(
        problem.name, sampler.name, "rllc", how, "λ", problem.truth.value, value, error, whole
    )


def their_rows(args, problem, kind, n_beta, lrs, draws=500):
    """devinterp's sgld and rmsprop_sgld, at one lr each, beside the law at ``n_beta`` or beside λ."""
    if args.without_devinterp:
        return
    for sampler, lr in zip(("sgld", "rmsprop_sgld"), lrs, strict=True):
        value, error, seconds = theirs(
            problem, sampler, lr, n_beta, 10 if args.tiny else draws, args.seed
        )
        truth = (
            problem.law(n_beta, lr if sampler == "sgld" else 0.0)
            if kind == "law"
            else problem.truth.value
        )
        value, error, how = (
            value / problem.copies,
            error / problem.copies,
            problem.settings(n_beta, lr),
        )
        yield Row(problem.name, sampler, "devinterp", how, kind, truth, value, error, seconds)


def theirs(problem, sampler, lr, n_beta, draws, seed=0):
    """devinterp's λ̂ by its own ``llc``, a standard error of its trace by our formula, and CPU seconds."""
    from datasets import Dataset
    from devinterp.slt.llc import llc

    model, data = problem.model, problem.data
    predicted = data.shape[1] if model(data).dim() == 2 else 1
    rows = Dataset.from_dict(
        {"input_ids": [[i] * (predicted + 1) for i in range(len(data))]}
    ).with_format("torch")

    def loss(module, ids):  # it takes rows of token ids; these say which row of the data
        each = module(data[ids[:, 0]])
        return each if each.dim() == 2 else each[:, None]

    half_width = problem.prior.half_width
    begin = time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        found = llc(
            model,
            rows,
            {},
            lr=lr,
            n_beta=n_beta,
            localization=problem.prior.localization,
            bounding_box_size=None if half_width == math.inf else half_width,
            param_masks=None if problem.moving is None else {problem.moving: None},
            sampling_method={"sgld": "sgmcmc_sgld", "rmsprop_sgld": "rmsprop_sgld"}[sampler],
            num_draws=draws,
            batch_size=len(data),
            num_init_loss_batches=1,
            init_seed=100 + seed,
            device="cpu",
            loss_fn=loss,
            output_path=Path(folder) / "samples.zarr",
        ).load()
    seconds = time.process_time() - begin
    trace = n_beta * found.loss_trace.values.astype(float)
    return (
        float(found.llc_mean),
        float(rllc.diagnostics.standard_error(trace, discard=0.2)),
        seconds,
    )


# %% λ from a ladder of nβ
def extrapolate(n_betas, values, errors, multiplicity, repeats=100):
    """λ, its error (of noise alone, by fits to values moved by theirs) and the form fitted; see the top of this file."""
    values, errors = np.asarray(values), np.asarray(errors)
    if not np.isfinite([*values, *errors]).all():
        return math.nan, math.nan, "a chain diverged"
    moved = values + errors * np.random.default_rng(0).standard_normal((repeats, len(values)))
    log = np.log(n_betas)
    if multiplicity > 1:
        fitted, misfit = fit_log(log, values, errors, multiplicity)
        if misfit < {1: 10.8, 2: 13.8}[len(values) - 2]:
            repeated = [fit_log(log, v, errors, multiplicity)[0] for v in moved]
            return fitted, float(np.std(repeated)), f"λ − {multiplicity - 1}/(log nβ + c)"
    repeated = [fit_power(log, v, errors) for v in moved]
    return fit_power(log, values, errors), float(np.std(repeated)), "λ + b nβ^−p"


def fit_log(log, values, errors, multiplicity):
    """λ and χ² of λ − (m − 1)/(log nβ + c)."""
    from scipy.optimize import least_squares

    def misfit(at):
        return (at[0] - (multiplicity - 1) / (log + at[1]) - values) / errors

    lowest = 0.05 - log[0]  # the pole stays left of the first nβ
    start = [values[-1] + 0.1, max(2.0, lowest + 1)]
    found = least_squares(
        misfit, start, bounds=([-np.inf, lowest], np.inf), x_scale=[max(abs(values[-1]), 1e-9), 1.0]
    )
    return float(found.x[0]), 2 * found.cost


def fit_power(log, values, errors):
    """λ of λ + b nβ^−p, p between 0.1 and 2; at fixed p a straight line."""
    powers = np.linspace(0.1, 2.0, 96)
    fits = []
    for p in powers:
        design = np.stack([np.ones_like(log), np.exp(-p * (log - log[0]))], 1) / errors[:, None]
        at, *_ = np.linalg.lstsq(design, values / errors, rcond=None)
        fits.append((float(((design @ at - values / errors) ** 2).sum()), float(at[0])))
    return min(fits)[1]


# %% The zoo
def quadratics(args):
    """ℓ = ½ Σ h v², h from 0.3 to 10."""
    n_beta, gamma = 100.0, 1.0
    for dim, chains in [(10, 64), (1000, 8)]:
        h, few = (
            np.geomspace(0.3, 10, dim),
            dim == 10,
        )  # acceptance falls with the number of weights
        name, prior = f"quadratic, {dim} weights", rllc.gaussian(gamma)
        problem = Problem(
            name,
            Quadratic(h),
            torch.ones(1, 1),
            prior,
            law=lambda n, lr, h=h: quadratic_target(h, n, gamma, lr),
        )
        samplers = {
            rllc.sgld(5e-4, gamma): counted(chains, 300, 300, 8),
            rllc.rmsprop_sgld(1e-4, gamma): counted(chains, 300, 500, 8),
            rllc.sghmc(1e-3, gamma): counted(chains, 300, 100, 4),
            rllc.mala(1e-3 if few else 3e-4, gamma): counted(chains, 300, 300, 4),
            rllc.hmc(5e-4, gamma, 15) if few else rllc.hmc(1e-4, gamma, 20): counted(
                chains, 250 if few else 150, 50
            ),
        }
        for sampler, counts in samplers.items():
            watched, kept = remembering(sampler)
            value, error, seconds = ours(
                args, problem.model, problem.data, watched, n_beta, **counts
            )
            truth = quadratic_law(h, sampler, n_beta, scaled(args, counts), kept)
            how = problem.settings(n_beta, sampler.lr)
            yield Row(
                name,
                sampler.name,
                "rllc",
                how,
                "law",
                truth,
                float(value[0]),
                float(error[0]),
                seconds,
            )
        yield from their_rows(args, problem, "law", n_beta, (5e-4, 1e-4), 1000 if few else 500)


def crossings(args):
    """Three normal crossings, uniform in a box."""
    copies = 128
    for k in [(1, 1), (1, 2), (2, 1, 1)]:
        name = "normal crossing " + " ".join(f"{w}^{2 * i}" for w, i in zip("xyz", k, strict=False))
        problem = Problem(
            f"{name}, {copies} copies",
            NormalCrossing(k, copies),
            torch.ones(1, 1),
            rllc.box(1.0),
            theory.normal_crossing(k),
            lambda n, lr, k=k: crossing_law(k, n),
            copies,
        )
        prior = problem.prior
        samplers = {
            rllc.sgld(1e-3, prior=prior): counted(192, 600, 800),
            rllc.rmsprop_sgld(1e-4, prior=prior): counted(192, 600, 800),
            rllc.sghmc(5e-3, prior=prior): counted(64, 300, 200),
            rllc.mala(3e-3, prior=prior): counted(128, 400, 400),
        }
        reference = functools.partial(rllc.hmc, prior=prior, num_leapfrog_steps=20)
        rungs = (1e1, 1e2, 1e3, 1e4)
        yield from singular(
            args,
            problem,
            10.0,
            samplers,
            rungs,
            lambda n, hmc=reference: hmc(min(0.01, 0.2 / n)),
            counted(64, 100, 60),
        )


def reduced_rank(args):
    """Reduced-rank regression, all four cases, at the zero product, where λ̂ at finite nβ is known too."""
    copies = 16
    for case, (M, N, H) in enumerate([(5, 5, 3), (2, 6, 3), (6, 2, 3), (2, 2, 5)], 1):
        problem = Problem(
            f"reduced rank, case {case}: M={M} N={N} H={H}, at 0, {copies} copies",
            ReducedRank(*placed(M, N, H, 0, 0, 0), copies),
            whitened(M),
            rllc.gaussian(1.0),
            theory.reduced_rank_regression_at(M, N, H, 0, 0, 0),
            lambda n, lr, shape=(M, N, H): reduced_rank_law(*shape, n, 1.0),
            copies,
        )
        samplers = {
            rllc.sgld(2e-3, 1.0): counted(64, 1300, 1500),
            rllc.sghmc(1e-2, 1.0): counted(64, 300, 200),
            rllc.mala(1e-2, 1.0): counted(64, 400, 400),
        }
        yield from singular(
            args, problem, 1.0, samplers, (1e1, 1e2, 1e3), slow_valleys, counted(64, 200, 1000, 4)
        )


def slow_valleys(n_beta):
    """With γ = 1: stable where the walls are steepest, and with enough momentum to get along the flat valleys between them."""
    return rllc.sghmc(min(3e-3, 0.05 / n_beta), 1.0, momentum=0.97)


def singular(args, problem, n_beta, samplers, rungs, make, counts):
    """A small singular problem: each sampler against the law at nβ, one of them on a ladder to λ, devinterp against both."""
    lr = next(iter(samplers)).lr
    yield from law_rows(args, problem, n_beta, samplers)
    yield from their_rows(args, problem, "law", n_beta, (lr, lr / 10))
    yield from ladder(args, problem, rungs, make, counts)
    yield from their_rows(args, problem, "λ", 100.0, (1e-3, 1e-4))


def places(args):
    """Two points of one fibre of reduced-rank regression: the deepest, and one where the local λ is above the global."""
    (M, N, H), copies = (5, 5, 3), 16
    for ranks, rungs, make in [
        ((1, 1, 1), (1e1, 1e2, 1e3), slow_valleys),
        ((3, 1, 1), (1e5,), lambda n: rllc.sghmc(0.2 / n, 100.0)),
    ]:
        problem = Problem(
            f"reduced rank, M={M} N={N} H={H}, rank 1, at a point of ranks {ranks[0]} and {ranks[1]}, {copies} copies",
            ReducedRank(*placed(M, N, H, *ranks), copies),
            whitened(M),
            rllc.gaussian(make(rungs[0]).localization),
            theory.reduced_rank_regression_at(M, N, H, *ranks),
            copies=copies,
        )
        yield from ladder(args, problem, rungs, make, counted(64, 200, 1000, 4))
        n_beta = 1e2 if len(rungs) > 1 else rungs[0]
        yield from their_rows(args, problem, "λ", n_beta, (0.05 / n_beta, 0.005 / n_beta))


def layers(args):
    """wrLLC of each layer of a linear network, and its drLLC on inputs that span 3 of 8 dimensions; all in one run."""
    widths, n_beta, gamma, prior = (8, 6, 7, 5), 1e4, 1.0, rllc.gaussian(1.0)
    weights = random_layers(
        widths, ranks=(5, 4, 5), seed=7
    )  # no curvature below 0.2, so that all directions settle
    model, names = LinearNetwork(weights), [f"W.{i}" for i in range(3)]
    stream = generator("subspace")
    left, right = (torch.linalg.qr(torch.randn(8, 3, generator=stream))[0] for _ in range(2))
    data = {
        "wrLLC": whitened(8),
        "drLLC": math.sqrt(8) * left @ right.T,
    }  # mean of x xᵀ: the identity; a projector
    h = {
        (i, kind): layer_curvatures(weights, i, rows)
        for i in range(3)
        for kind, rows in data.items()
    }
    problems = {
        (i, kind): Problem(
            f"linear network {widths}, {kind} of layer {i}",
            model,
            data[kind],
            prior,
            law=lambda n, lr, h=curvatures: quadratic_target(h, n, gamma, lr),
            moving=names[i],
        )
        for (i, kind), curvatures in h.items()
    }
    samplers = {
        rllc.sgld(2e-5, gamma): counted(32, 250, 300, 8),
        rllc.sghmc(2e-5, gamma): counted(32, 250, 100, 4),
    }
    for sampler, counts in samplers.items():
        chosen = {name: rllc.parameters(name) for name in names}
        values, errors, seconds = ours(args, model, data, sampler, n_beta, chosen, **counts)
        for (key, problem), value, error in zip(problems.items(), values, errors, strict=True):
            truth = quadratic_law(h[key], sampler, n_beta, scaled(args, counts), [])
            how = problem.settings(n_beta, sampler.lr)
            yield Row(
                problem.name,
                sampler.name,
                "rllc",
                how,
                "law",
                truth,
                value,
                error,
                seconds / len(problems),
            )
    for problem in problems.values():
        yield from their_rows(args, problem, "law", n_beta, (2e-5, 2e-6), 300)


def layer_curvatures(weights, layer, rows):
    covariance = (rows.double().T @ rows.double() / len(rows)).float()
    return theory.deep_linear_curvatures(
        weights, layer, torch.where(covariance.abs() < 1e-6, 0.0, covariance)
    )


def networks(args):
    """Whole linear networks of 2,800 and 1,033,000 weights, and one layer of 10⁶ weights."""
    for widths, gamma, rungs, counts in [
        ((50, 20, 30, 40), 120.0, (1e4, 1e5, 1e6), counted(4, 200, 1000, 4)),
        ((100, 30, 1000, 1000), 4000.0, (1e5, 3e5, 1e6), counted(1, 80, 260)),
    ]:
        weights = aligned(widths, rank=5)
        size = sum(W.numel() for W in weights)
        name = f"linear network {widths}, rank 5: {size:,} weights"
        truth = theory.deep_linear(widths, 5)
        problem = Problem(
            name, LinearNetwork(weights), whitened(widths[0]), rllc.gaussian(gamma), truth
        )
        yield from ladder(args, problem, rungs, lambda n, g=gamma: rllc.sghmc(0.3 / n, g), counts)
        lr = 0.1 / rungs[0]
        yield from their_rows(
            args, problem, "λ", rungs[0], (lr, lr / 10), 500 if size < 1e5 else 50
        )
    widths, n_beta, gamma = (100, 1000, 1000, 10), 1e4, 10.0
    weights = random_layers(widths, ranks=(100, 300, 10))
    h = theory.deep_linear_curvatures(weights, 1)
    h = h[h > 0]
    sampler, counts = rllc.sgld(3e-5, gamma), counted(1, 100, 100)
    law = quadratic_law(h, sampler, n_beta, scaled(args, counts), [])
    name = f"linear network {widths}, wrLLC of the layer of 1,000,000 weights"
    problem = Problem(
        name,
        LinearNetwork(weights),
        whitened(widths[0]),
        rllc.gaussian(gamma),
        law=lambda n, lr: quadratic_target(h, n, gamma, lr),
        moving="W.1",
    )
    value, error, seconds = ours(
        args,
        problem.model,
        problem.data,
        sampler,
        n_beta,
        rllc.parameters(problem.moving),
        **counts,
    )
    how = problem.settings(n_beta, sampler.lr)
    yield Row(name, "sgld", "rllc", how, "law", law, float(value[0]), float(error[0]), seconds)
    yield from their_rows(args, problem, "law", n_beta, (3e-5, 3e-6), 50)


def attention(args):
    """One head, W_Q, W_K, W_V and W_O all free; every context of two tokens."""
    v, d_head = 4, 3
    problem = Problem(
        f"one head, uniform target: {v} tokens, d_head={d_head}",
        OneHead(v, d_head),
        torch.tensor(list(itertools.product(range(v), repeat=2))),
        rllc.gaussian(1.0),
        theory.one_head_attention(v, d_head),
    )
    rungs = (1e2, 1e3, 1e4, 1e5)
    yield from ladder(
        args, problem, rungs, lambda n: rllc.hmc(2.0 / n, 1.0, 20), counted(64, 80, 60)
    )
    yield from their_rows(args, problem, "λ", 1e3, (2e-4, 2e-5), 1000)


if __name__ == "__main__":
    main()
