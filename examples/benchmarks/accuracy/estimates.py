"""Estimates of a problem, ours and devinterp's, as rows of the table."""

import contextlib
import io
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import rllc
from rllc import theory

from .extrapolation import extrapolate
from .rows import Row

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Settings:
    """What of the benchmark is run."""

    seed: int = 0
    tiny: bool = False
    with_devinterp: bool = True

    def scaled(self, counts: Counts) -> dict[str, Any]:
        """These counts, or a fiftieth of draws, chains and burn-in if ``tiny``."""
        if not self.tiny:
            return dict(counts)
        few = {name: max(4, count // 50) for name, count in counts.items()}
        return few | {"num_steps_bw_draws": counts["num_steps_bw_draws"]}


@dataclass(frozen=True)
class Problem:
    """A module at a minimum, its data, the prior around it, and what is known of it."""

    name: str
    model: nn.Module
    data: Tensor
    prior: rllc.samplers.Prior
    learning_coefficient: theory.LearningCoefficient | None = None
    law: Callable[[float, float], float] | None = None
    """λ̂ at a finite nβ, and at an lr of sgld where that is known."""
    copies: int = 1
    """λ and λ̂ are given for one."""
    moving: str | None = None
    """The parameter that moves; ``None``: all."""

    def truth(self, kind: str, n_beta: float, lr: float = 0.0) -> float:
        """The value that a row of this kind is held against."""
        if kind == "λ":
            assert self.learning_coefficient is not None
            return self.learning_coefficient.value
        assert self.law is not None
        return self.law(n_beta, lr)

    def settings(self, n_beta: float | str, lr: float) -> str:
        """The numbers that a row is made with."""
        box = self.prior.half_width
        prior = f"γ={self.prior.localization:g}" if box == math.inf else f"box {box:g}"
        return f"nβ={n_beta}, {prior}, ε={lr:g}"


def counts(chains: int, draws: int, burnin: int, apart: int = 1) -> dict[str, int]:
    """Counts of :class:`rllc.Sampling`."""
    return {
        "num_chains": chains,
        "num_draws": draws,
        "num_burnin_steps": burnin,
        "num_steps_bw_draws": apart,
    }


def loss_of(module: nn.Module, rows: Tensor) -> Tensor:
    losses: Tensor = module(rows)
    return losses


def ours(
    settings: Settings,
    model: nn.Module,
    data: Tensor | Mapping[str, Tensor],
    sampler: rllc.samplers.Sampler,
    n_beta: float,
    counts: Counts,
    weights: Any = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """λ̂ and its standard error, each ``[refinement]``, and CPU seconds."""
    first = data if isinstance(data, Tensor) else next(iter(data.values()))
    sampling = rllc.Sampling(
        start="center",
        batch_size=len(first),
        n_beta=n_beta,
        seed=settings.seed,
        num_probes=0,
        **settings.scaled(counts),
    )
    begin = time.process_time()
    draws = rllc.sample(
        model,
        data,
        weights,
        loss=loss_of,
        sampler=sampler,
        sampling=sampling,
        compute=rllc.Compute(progress=False),
    )
    seconds = time.process_time() - begin
    return draws.llc.mean((1, 2)), rllc.statistics.diagnostics.mcse(draws.llc), seconds


def law_row(
    settings: Settings,
    problem: Problem,
    n_beta: float,
    sampler: rllc.samplers.Sampler,
    counts: Counts,
    truth: float | Callable[[], float] | None = None,
) -> Row:
    """λ̂ beside the problem's law at ``n_beta``, or beside another truth.

    Args:
        settings: of the benchmark.
        problem: what is sampled.
        n_beta: at which nβ.
        sampler: by which sampler.
        counts: of chains, draws and steps.
        truth: a value, or a function that is called when the chains have ended.
    """
    moving = None if problem.moving is None else rllc.parameters(problem.moving)
    value, error, seconds = ours(
        settings, problem.model, problem.data, sampler, n_beta, counts, moving
    )
    if truth is None:
        truth = problem.truth("law", n_beta)
    return Row(
        problem.name,
        sampler.name,
        "rllc",
        problem.settings(f"{n_beta:g}", sampler.lr),
        "law",
        truth() if callable(truth) else truth,
        float(value[0]) / problem.copies,
        float(error[0]) / problem.copies,
        seconds,
    )


def ladder(
    settings: Settings,
    problem: Problem,
    rungs: Sequence[float],
    make: Callable[[float], rllc.samplers.Sampler],
    counts: Counts,
) -> Iterator[Row]:
    """λ̂ at each nβ of ``rungs`` by ``make(nβ)``, beside the law if there is one; then λ."""
    values = []
    errors = []
    seconds = 0.0
    for n_beta in rungs:
        truth = 0.0 if problem.law is None else None
        row = law_row(settings, problem, n_beta, make(n_beta), counts, truth)
        values.append(row.estimate)
        errors.append(row.error)
        seconds += row.seconds
        if problem.law is not None:
            yield row
    value, error, form = values[-1], errors[-1], "as it is"
    if len(rungs) > 1:
        assert problem.learning_coefficient is not None
        multiplicity = problem.learning_coefficient.multiplicity
        value, error, form = extrapolate(rungs, values, errors, multiplicity)
    sampler = make(rungs[-1])
    all_rungs = " ".join(f"{n_beta:g}" for n_beta in rungs)
    without_lr, _, _ = problem.settings(all_rungs, sampler.lr).rpartition(", ")
    yield Row(
        problem.name,
        sampler.name,
        "rllc",
        f"{without_lr}, {form}",
        "λ",
        problem.truth("λ", rungs[-1]),
        value,
        error,
        seconds,
    )


def remembering(sampler: rllc.samplers.Sampler) -> tuple[rllc.samplers.Sampler, list[Any]]:
    """The same sampler, and a list that always holds its last state."""
    last: list[Any] = []

    def step(state: Any, energy: Any, random: Any) -> Any:
        last[:] = [sampler.step(state, energy, random)]
        return last[0]

    return replace(sampler, step=step), last


# devinterp.


def their_rows(
    settings: Settings,
    problem: Problem,
    kind: str,
    n_beta: float,
    lrs: tuple[float, float],
    draws: int = 500,
) -> Iterator[Row]:
    """devinterp's sgld and rmsprop_sgld, at one lr each, beside the law at ``n_beta`` or λ."""
    if not settings.with_devinterp:
        return
    num_draws = 10 if settings.tiny else draws
    for sampler, lr in zip(("sgld", "rmsprop_sgld"), lrs, strict=True):
        value, error, seconds = theirs(problem, sampler, lr, n_beta, num_draws, settings.seed)
        # The error of the step size is known for the first only.
        lr_of_law = lr if sampler == "sgld" else 0.0
        yield Row(
            problem.name,
            sampler,
            "devinterp",
            problem.settings(f"{n_beta:g}", lr),
            kind,
            problem.truth(kind, n_beta, lr_of_law),
            value / problem.copies,
            error / problem.copies,
            seconds,
        )


def theirs(
    problem: Problem, sampler: str, lr: float, n_beta: float, draws: int, seed: int = 0
) -> tuple[float, float, float]:
    """devinterp's λ̂ by its own ``llc``, a standard error of its trace by our formula, seconds."""
    from datasets import Dataset
    from devinterp.slt.llc import llc

    model = problem.model
    data = problem.data

    def loss(module: nn.Module, ids: Tensor) -> Tensor:
        losses: Tensor = module(data[ids[:, 0]])
        return losses if losses.dim() == 2 else losses[:, None]

    # It takes rows of token ids, of which the first is not predicted; these name rows of the data.
    num_predicted = data.shape[1] if model(data).dim() == 2 else 1
    ids = [[row] * (num_predicted + 1) for row in range(len(data))]
    rows = Dataset.from_dict({"input_ids": ids}).with_format("torch")
    half_width = problem.prior.half_width
    begin = time.process_time()
    with quiet_folder() as folder:
        result = llc(
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
            output_path=folder / "samples.zarr",
        ).load()
    seconds = time.process_time() - begin
    trace = n_beta * result.loss_trace.values.astype(float)
    error = rllc.statistics.diagnostics.mcse(trace)
    return float(result.llc_mean), float(error), seconds


@contextlib.contextmanager
def quiet_folder() -> Iterator[Path]:
    """A temporary folder, without warnings and progress bars."""
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield Path(folder)
