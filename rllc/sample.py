"""The only loop over steps: many chains, many refinements, one pass over each minibatch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rllc import refinement as refine
from rllc.checks import (
    arguments,
    check,
    check_baseline,
    check_resume,
    check_same_baseline,
    check_states,
)
from rllc.data.tokens import Minibatches, Tokens
from rllc.diagnostics import standard_error
from rllc.draws import Draws
from rllc.engine.layout import Group, center, digest, groups, to
from rllc.errors import InputError
from rllc.loss import Batch, Center, Distillation, Loss, LossFunction, Runs, bind
from rllc.probes import can_be_judged, largest_curvature, probed, second_look
from rllc.refinement import DataLike, Refinement, WeightsLike
from rllc.samplers import Random, Sampler
from rllc.sampling import Sampling
from rllc.seeds import generator, stable_hash

RISE = 0.2
"""Share of the draws, at the beginning, from which no noise is estimated: chains that start at w* still rise there."""

_LOOKS = 128
"""Minibatches of their own whose gradients at w* tell the mean slope and the curvature of each weight.

The same number for any ``num_draws``, so that chains that go on are those of a longer run. With 200 draws, as many more
would take the share of the slope's noise that is left from about 8 to 4 %."""

_CPU_PASS = 256 * 2**20
"""Bytes of a pass on a CPU; for the paper's model 4 runs, measured 10 to 25 % faster than 16."""

_FREE_WALKS = 1e2
"""A chain counts as diverged when its root-mean-square distance from w* exceeds this many free random walks √(lr · steps)."""


class Step(NamedTuple):
    """The chains after a step, measured on the next minibatch, on which they do not depend."""

    step: int
    """From 1 on."""
    draw: int | None
    """Which draw this is, from 0 on; ``None`` during burn-in and between draws."""
    loss: Tensor
    """``[refinement, chain]``, float64: mean loss on this step's minibatch; NaN once a chain has diverged."""
    baseline: Tensor
    """``[refinement]``, float64: the loss at w* on the same minibatch."""
    control: Tensor
    """``[refinement, chain]``, float64: (g_B − ĝ)·(v − v*) with ``Sampling(control_variate=True)``, else 0."""
    tokens: Mapping[tuple[str, str], Tensor]
    """With ``per_token``: each refinement's losses ``[chain, batch]`` or ``[chain, batch, pos]``; else empty."""
    token_baseline: Mapping[str, Tensor]
    """With ``per_token``: the losses at w* on each data set's minibatch; else empty."""
    rows: Mapping[str, Tensor]
    """Which rows of each data set the minibatch holds."""
    diverged: Tensor
    """``[refinement, chain]``: the step at which a chain diverged, −1 while it has not."""
    noise: Tensor
    """``[refinement, chain]``, float64: at a draw, variance of loss − baseline due to the choice of the minibatch."""
    probes: Mapping[str, Tensor]
    """:func:`rllc.probes.second_look`, ``[refinement, chain]``; at step 1 ``"max_curvature"``, ``[refinement]``; else empty."""
    positions: Callable[[int], Tensor]
    """``positions(refinement)`` is ``[chain, dim]``: the selected weights, parameters in alphabetical order."""


def sample(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    per_token: bool = False,
    keep_states: bool = False,
    resume: Draws | None = None,
    progress: bool = True,
) -> Draws:
    """Sample around the model's weights, and give every draw with its baseline; :func:`rllc.estimate` sums them up.

    >>> model, data, loss = torch.nn.Linear(2, 1), torch.randn(8, 2), lambda m, x: m(x)[:, 0] ** 2
    >>> few, more = Sampling(num_draws=5, batch_size=8), Sampling(num_draws=9, batch_size=8)
    >>> draws = sample(model, data, loss=loss, sampling=few, keep_states=True, progress=False)
    >>> sample(model, data, loss=loss, sampling=more, resume=draws, progress=False)  # computes 4 draws
    Draws(1 refinements × 4 chains × 9 draws)

    All heads and chains run together. The minibatches are shared by all refinements of one data set, the noise is a
    function of (seed, selected weights, data, chain) alone: a refinement gives the same draws alone or in company.
    Neither the model, nor its gradients or mode, nor any global random state is changed.

    Args:
        model: any module; :class:`rllc.models.AttentionOnly` is fastest.
        data: see :func:`rllc.refinement.product`; so for ``weights``.
        loss: ``loss(module, batch)`` giving per-example or per-token losses; ``None`` is next-token cross entropy.
        sampler: ``None`` is ``rllc.sgld(lr=1e-3, localization=200.0)``, the paper's.
        sampling: ``None`` is ``rllc.Sampling()``, the paper's.
        per_token: also keep the loss of each example or token at every draw (large: it is the draws times a minibatch).
        keep_states: also keep what the chains need to go on, in ``draws.states``: for each chain 4 bytes a weight (8 with
            rmsprop_sgld and sghmc) and 5 kB on a CPU, and for each refinement 4 bytes a weight with ``control_variate``.
        resume: draws of the same call with fewer ``num_draws`` and with ``keep_states``: its chains go on where they were,
            and the result is that of one call, bit for bit where passes are of the same size. ``per_token`` is then of
            all draws if ``resume`` has it, else of the new ones.
        progress: show a bar.

    Raises:
        InputError: before any chain runs, when an argument cannot work; so, when ``resume`` has no states, or is of other
            settings, data, weights or another model.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    refinements = refine.product(weights, data)
    stopped = {} if resume is None else _stopped(resume, refinements, sampler, sampling)
    there = 0 if resume is None else resume.loss.shape[-1]
    kept: list[Step] = []
    probes: dict[str, list[Tensor]] = {}
    states: dict[tuple[str, str], dict[str, np.ndarray]] | None = {} if keep_states else None
    bar = tqdm(
        total=sampling.num_steps,
        initial=0 if resume is None else replace(sampling, num_draws=there).num_steps,
        desc=f"{sampler.name}: {len(refinements)} × {sampling.num_chains} chains",
        unit="step",
        disable=not progress,
        leave=False,
    )
    with bar:
        for step in _steps(
            model, refinements, loss, sampler, sampling, per_token, stopped, resume, states
        ):
            bar.update()
            for name, found in step.probes.items():
                probes.setdefault(name, []).append(found)
            if step.draw is not None:
                kept.append(step._replace(positions=_forgotten))
                _stop_the_precise(stopped, resume, kept, sampling)

    def over(name: str, of: Callable[[Step], Tensor]) -> np.ndarray:
        return _joined(None if resume is None else getattr(resume, name), map(of, kept), -1)

    def by_name(name: str, axis: int) -> dict[Any, np.ndarray]:
        before, after = (
            {} if resume is None else getattr(resume, name),
            [getattr(s, name) for s in kept],
        )
        keys = dict.fromkeys([*before, *(after[0] if after else ())]) if per_token else ()
        return {k: _joined(before.get(k), (a[k] for a in after if k in a), axis) for k in keys}

    return Draws(
        loss=over("loss", lambda s: s.loss),
        baseline=over("baseline", lambda s: s.baseline[:, None].expand_as(s.loss)),
        control=over("control", lambda s: s.control) if sampling.control_variate else None,
        noise=over("noise", lambda s: s.noise),
        probes=_over_probes(probes, resume, sampling),
        diverged=kept[-1].diverged.cpu().numpy() if kept else resume.diverged,
        weights=tuple(r.weights.name for r in refinements),
        data=tuple(r.data_name for r in refinements),
        settings=sampler.settings
        | sampling.settings
        | {"fingerprints": refine.fingerprints(refinements)},
        lengths=tuple(stopped.get(i, there + len(kept)) for i in range(len(refinements))),
        tokens=by_name("tokens", 1),
        token_baseline=by_name("token_baseline", 0),
        rows=by_name("rows", 0),
        states=states or {},
    )


def _stopped(
    resume: Draws, refinements: Sequence[Refinement], sampler: Sampler, sampling: Sampling
) -> dict[int, int]:
    """The refinements of earlier draws that need no more of them, with their number of draws."""
    settings = (
        sampler.settings | sampling.settings | {"fingerprints": refine.fingerprints(refinements)}
    )
    check_resume(resume, refinements, settings)
    stopped = {i: n for i, n in enumerate(resume.lengths) if n < resume.loss.shape[-1]}
    _stop_the_precise(stopped, resume, [], sampling)
    return stopped


def _stop_the_precise(
    stopped: dict[int, int], resume: Draws | None, kept: Sequence[Step], sampling: Sampling
) -> None:
    """Note the refinements whose standard error is small enough, with their number of draws."""
    count = len(kept) + (0 if resume is None else resume.loss.shape[-1])
    if sampling.target_se is None or count < 40 or count % 20:
        return
    before = None
    if resume is not None:
        before = resume.loss - resume.baseline - (0.0 if resume.control is None else resume.control)
    paired = _joined(before, (s.loss - s.baseline[:, None] - s.control for s in kept), -1)
    for i, error in enumerate(sampling.n_beta * standard_error(paired, discard=RISE)):
        if error <= sampling.target_se:
            stopped.setdefault(i, count)


def iterate(
    model: nn.Module,
    data: DataLike,
    weights: WeightsLike = None,
    *,
    loss: LossFunction | None = None,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    per_token: bool = False,
) -> Iterator[Step]:
    """The generator under :func:`sample`: one :class:`Step` after another, for observables of your own.

    >>> model, data = torch.nn.Linear(2, 1), torch.randn(8, 2)
    >>> steps = iterate(model, data, loss=lambda m, x: m(x)[:, 0] ** 2, sampling=Sampling(num_draws=2, batch_size=8))
    >>> [tuple(step.positions(0).shape) for step in steps]
    [(4, 3), (4, 3)]

    Takes what :func:`sample` takes. Stop early by leaving the loop. Values stay on the device.
    """
    sampler, sampling = arguments(model, loss, sampler, sampling)
    if sampling.target_se is not None:
        raise InputError(
            "iterate: `target_se` stops rllc.sample and rllc.estimate; here, leave the loop when you like."
        )
    return _steps(model, refine.product(weights, data), loss, sampler, sampling, per_token, {})


def _forgotten(refinement: int) -> Tensor:
    raise InputError(
        "positions are not kept after the step; read them inside the loop over rllc.iterate(...)."
    )


def _over_probes(
    probes: Mapping[str, Sequence[Tensor]], resume: Draws | None, sampling: Sampling
) -> dict[str, np.ndarray]:
    """``[refinement, chain, probe]``; the curvature, found once, ``[refinement]``."""
    before: dict[str, np.ndarray] = {}
    if resume is not None:
        then, now = (
            probed(sampling.num_probes, n, sampling.target_se)
            for n in (resume.settings["num_draws"], sampling.num_draws)
        )
        still = [i for i, draw in enumerate(then) if draw in now]
        for name, a in resume.probes.items():
            before[name] = (
                a[..., None]
                if name == "max_curvature"
                else a[..., [i for i in still if i < a.shape[-1]]]
            )
    names = dict.fromkeys([*before, *probes])
    arrays = {name: _joined(before.get(name), probes.get(name, ()), -1) for name in names}
    return {name: a[..., 0] if name == "max_curvature" else a for name, a in arrays.items()}


def _joined(before: np.ndarray | None, steps: Iterable[Tensor], axis: int) -> np.ndarray:
    """What there was, and behind it the values of further steps along a new axis."""
    new = list(steps)
    arrays = [] if before is None else [before]
    return np.concatenate([*arrays, torch.stack(new, axis).cpu().numpy()] if new else arrays, axis)


@dataclass
class _Pass:
    """Runs of one group on one data set that go through the model together; ``state`` is what a step replaces."""

    group: Group
    member: Tensor  # [run], of the group
    refinement: Tensor  # [run]
    chain: Tensor  # [run]
    origin: Tensor  # [member, dim]: w*
    random: Random
    state: Any
    spread: float = 0.0  # mean square distance from w*, per weight, at which chains start
    slope: Tensor | None = None  # [member, dim]: ĝ, for the control variate


@dataclass(frozen=True)
class _DataSet:
    """One data set, its minibatches, and the passes over them."""

    name: str
    rows: refine.Rows
    minibatches: Minibatches
    refinements: Tensor
    passes: list[_Pass]


def _steps(
    model: nn.Module,
    refinements: Sequence[Refinement],
    loss: LossFunction | None,
    sampler: Sampler,
    sampling: Sampling,
    per_token: bool,
    stopped: Mapping[int, int],
    resume: Draws | None = None,
    states: dict[tuple[str, str], dict[str, np.ndarray]] | None = None,
) -> Iterator[Step]:
    """The loop. A refinement that its reader puts into ``stopped`` between two steps is not sampled any further.

    It begins behind the draws of ``resume``, and at its end puts into ``states`` what the chains need to go on.
    """
    model, loss, device = _there(model, loss, sampling)
    masks = check(model, loss, refinements, sampler, sampling)
    autocast = None if sampling.autocast is None else getattr(torch, sampling.autocast)
    bound = bind(
        model, loss, autocast=autocast, train_mode=sampling.train_mode, compile=sampling.compile
    )
    exact = bind(
        model, loss, train_mode=sampling.train_mode
    )  # float32, which differences of gradients need
    datasets = _plan(model, bound, refinements, masks, sampler, sampling, device)
    diverged, begin = torch.full((len(refinements), sampling.num_chains), -1, device=device), 0
    if resume is not None:
        begin = replace(sampling, num_draws=resume.loss.shape[-1]).num_steps + 1
        diverged = torch.tensor(resume.diverged, device=device)
        datasets = _without(datasets, stopped) if stopped else datasets
        for d in datasets:
            for p in d.passes:
                _put_back(p, resume, refinements, masks)
            _, _, at = _minibatch(d, begin - 1, bound, sampling, device)
            check_same_baseline(at, resume.baseline[int(d.refinements[0]), 0, -1], d.name)
    elif sampling.start == "gaussian" or sampling.control_variate:
        for d in datasets:
            _look_around(d, bound, sampler, sampling, device)
    active, looks = len(refinements) - len(stopped), _looks(sampler, sampling)
    sharpest = torch.full((len(refinements),), torch.nan, dtype=torch.float64, device=device)
    for t in range(begin, sampling.num_steps + 1):
        if len(refinements) - len(stopped) < active:
            datasets, active = _without(datasets, stopped), len(refinements) - len(stopped)
        if not active:
            return
        losses = torch.full(diverged.shape, torch.nan, dtype=torch.float64, device=device)
        baseline, control, draw = (
            losses[:, 0].clone(),
            torch.zeros_like(losses),
            _draw_at(t, sampling),
        )
        rows, tokens, token_baseline = {}, {}, {}
        positions, noise = [], torch.full_like(losses, torch.nan)
        probes: dict[str, Tensor] = (
            {"max_curvature": sharpest} if t == 1 and sampling.num_probes else {}
        )
        for d in datasets:
            rows[d.name], batch, at = _minibatch(d, t, bound, sampling, device)
            baseline[d.refinements] = at.losses.double().mean()
            if per_token:
                token_baseline[d.name] = at.losses
            if t == 0 and sampling.num_probes:
                _sharpest(
                    sharpest, d, exact, batch, stable_hash("loss", sampling.seed, t), sampler.lr
                )
            if draw is not None and sampling.control_variate:
                _control(control, d, bound, at, batch, stable_hash("loss", sampling.seed, t))
            for p in d.passes:
                where, before = (p.refinement, p.chain), p.state.position
                positions.append((p, before))
                runs = _advance(
                    p, bound, at, batch, sampler, sampling, each=per_token or draw is not None
                )
                broken = ~runs.losses.isfinite() | _runs_away(p, sampler.lr, t + 1)
                diverged[where] = torch.where(broken & (diverged[where] < 0), t, diverged[where])
                losses[where] = torch.where(diverged[where] < 0, runs.losses, torch.nan)
                if draw is not None:
                    noise[where] = _minibatch_noise(runs, at, refine.num_rows(d.rows))
                if draw in looks:
                    for name, values in _look_again(
                        p, before, runs, bound, at, batch, sampler, sampling
                    ).items():
                        probes.setdefault(name, torch.full_like(losses, torch.nan))[where] = values
                if per_token and runs.each is not None:
                    _sort_tokens(tokens, p, runs.each, refinements, sampling.num_chains)
        if t > 0:
            find = partial(_positions, positions, sampling.num_chains)
            told = tokens, token_baseline, rows
            yield Step(
                t, draw, losses, baseline, control, *told, diverged.clone(), noise, probes, find
            )
    if states is not None:
        states.update(_states(datasets, refinements, masks, sampler, sampling))


def _states(
    datasets: Sequence[_DataSet],
    refinements: Sequence[Refinement],
    masks: Sequence[Mapping[str, Tensor]],
    sampler: Sampler,
    sampling: Sampling,
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """What the chains of each refinement need to go on, ``[chain, …]``; without what a chain begins with anyhow, as w*."""
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    passes = [p for d in datasets for p in d.passes]
    for p in passes:
        parts = {f"sampler.{name}": part for name, part in p.state._asdict().items()}
        parts["random"] = torch.stack([stream.get_state() for stream in p.random.streams])
        if sampling.start == "gaussian":
            parts["spread"] = torch.full((len(p.chain),), p.spread, dtype=torch.float64)
        for r in p.refinement.unique().tolist():
            runs = (p.refinement == r).nonzero()[:, 0]
            mine = found.setdefault(refinements[r].name, {"weights": np.array([digest(masks[r])])})
            for name, part in parts.items():
                some = part[runs.to(part.device)].cpu().numpy()
                whole = mine.setdefault(
                    name, np.empty((sampling.num_chains, *some.shape[1:]), some.dtype)
                )
                whole[p.chain[runs].cpu().numpy()] = some
            if p.slope is not None and sampling.control_variate:
                mine["slope"] = p.slope[p.member[runs[0]]].cpu().numpy()
    for p in passes:
        for r, m in dict(zip(p.refinement.tolist(), p.member.tolist(), strict=True)).items():
            mine = found[refinements[r].name]
            for name, first in sampler.init(p.origin[[m]])._asdict().items():
                if np.array_equal(
                    mine.get(f"sampler.{name}", ()),
                    first.expand(sampling.num_chains, *first.shape[1:]).cpu(),
                ):
                    del mine[f"sampler.{name}"]
    return found


def _put_back(
    p: _Pass,
    resume: Draws,
    refinements: Sequence[Refinement],
    masks: Sequence[Mapping[str, Tensor]],
) -> None:
    """Set the chains of a pass to where :func:`_states` found them."""
    runs = list(zip(p.refinement.tolist(), p.chain.tolist(), strict=True))
    for r in dict.fromkeys(r for r, _ in runs):
        check_states(resume, refinements[r].name, digest(masks[r]), p.random.streams[0].get_state())
    states = [resume.states[refinements[r].name] for r, _ in runs]
    fields = {}
    for name, part in p.state._asdict().items():
        kept = [
            (row, s.get(f"sampler.{name}"), c)
            for row, s, (_, c) in zip(part, states, runs, strict=True)
        ]
        fields[name] = torch.stack(
            [row if a is None else torch.as_tensor(a[c]).to(row) for row, a, c in kept]
        )
    p.state = type(p.state)(**fields)
    for stream, s, (_, c) in zip(p.random.streams, states, runs, strict=True):
        stream.set_state(torch.from_numpy(s["random"][c]))
    p.spread = max(
        float(s["spread"][c]) if "spread" in s else 0.0
        for s, (_, c) in zip(states, runs, strict=True)
    )
    if "slope" in states[0]:
        p.slope = torch.zeros_like(p.origin)
        for s, m in zip(states, p.member.tolist(), strict=True):
            p.slope[m] = torch.from_numpy(s["slope"])


def _minibatch_noise(runs: Runs, at: Center, num_rows: int) -> Tensor:
    """``[run]``: by how much loss − baseline varies with the choice of the minibatch, from how it varies within one.

    Rows are drawn without replacement: variance over rows / batch, times 1 − batch/rows; NaN for one row of several.
    """
    assert runs.each is not None
    rise = (
        (runs.each.double() - at.losses.double())
        .reshape(len(runs.losses), len(at.losses), -1)
        .mean(2)
    )
    batch = rise.shape[1]
    if batch == num_rows:
        return torch.zeros_like(rise[:, 0])
    return (
        rise.var(1) / batch * (1 - batch / num_rows)
        if batch > 1
        else torch.full_like(rise[:, 0], torch.nan)
    )


def _look_again(
    p: _Pass,
    before: Tensor,
    runs: Runs,
    bound: Loss,
    at: Center,
    batch: Batch,
    sampler: Sampler,
    sampling: Sampling,
) -> dict[str, Tensor]:
    """:func:`rllc.probes.second_look` at the step that the runs have just made, on its own minibatch."""
    after = p.state.position
    again = bound.runs(p.group, p.member, after, at, batch, gradient=True, each=False)
    return second_look(before, after, runs, again, p.origin[p.member], sampler, sampling.n_beta)


def _looks(sampler: Sampler, sampling: Sampling) -> frozenset[int]:
    """The draws that are probed."""
    if not sampling.num_probes or not can_be_judged(sampler):
        return frozenset()
    return frozenset(probed(sampling.num_probes, sampling.num_draws, sampling.target_se))


def _sharpest(found: Tensor, d: _DataSet, exact: Loss, batch: Batch, seed: int, lr: float) -> None:
    """Put the largest curvature in the weights of each refinement where it belongs."""
    at = exact.center(batch, seed)
    for p in d.passes:
        for member, refinement, chain in zip(
            p.member.tolist(), p.refinement.tolist(), p.chain.tolist(), strict=True
        ):
            if chain == 0:
                found[refinement] = largest_curvature(
                    exact, p.group, member, p.origin[member], at, batch, lr
                )


def _draw_at(t: int, sampling: Sampling) -> int | None:
    after = t - sampling.num_burnin_steps
    whole = after > 0 and after % sampling.num_steps_bw_draws == 0
    return after // sampling.num_steps_bw_draws - 1 if whole else None


def _minibatch(
    d: _DataSet, t: int, bound: Loss, sampling: Sampling, device: torch.device
) -> tuple[Tensor, Batch, Center]:
    """Which rows step t sees, the rows, and the unmoved model on them."""
    rows = d.minibatches[t]
    batch = refine.take(d.rows, rows, device)
    at = bound.center(batch, seed=stable_hash("loss", sampling.seed, t))
    if t == 0:
        check_baseline(at, d.name)
    return rows, batch, at


def _advance(
    p: _Pass,
    bound: Loss,
    at: Center,
    batch: Batch,
    sampler: Sampler,
    sampling: Sampling,
    each: bool,
) -> Runs:
    """Measure the runs where they are, and move them: one evaluation serves both."""
    measured: list[Runs] = []

    def energy(position: Tensor) -> tuple[Tensor, Tensor]:
        first = not measured
        runs = bound.runs(
            p.group, p.member, position, at, batch, gradient=True, each=each and first
        )
        if first:
            measured.append(runs)
        return sampling.n_beta * runs.losses, sampling.n_beta * runs.gradient

    energy.n_beta = sampling.n_beta  # type: ignore[attr-defined]
    p.state = sampler.step(p.state, energy, p.random)
    return measured[0]


def _look_around(
    d: _DataSet, bound: Loss, sampler: Sampler, sampling: Sampling, device: torch.device
) -> None:
    """Mean and variance of the gradient at w* over minibatches of their own: the control variate's ĝ, and where to start."""
    minibatches = Minibatches(
        refine.num_rows(d.rows), sampling.batch_size, seed=("look around", sampling.seed)
    )
    mean: dict[int, Tensor] = {}
    spread: dict[
        int, Tensor
    ] = {}  # sums of squares around the mean, by Welford: 128 gradients at once need not fit
    for t in range(_LOOKS):
        seed = stable_hash("look around", sampling.seed, t)
        batch = refine.take(d.rows, minibatches[t], device)
        at = bound.center(batch, seed)
        for key, gradient in _gradients(d, bound, at, batch, seed).items():
            if t == 0:
                mean[key], spread[key] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            off = gradient - mean[key]
            mean[key] += off / (t + 1)
            spread[key].addcmul_(off, gradient - mean[key])
    for p in d.passes:
        p.slope = mean[id(p.group)]
        if sampling.start == "gaussian":
            variance = spread[id(p.group)] / (_LOOKS - 1)
            curvature = (
                variance * at.losses.numel()
            )  # Fisher information = variance × predictions in a minibatch
            a = sampling.n_beta * curvature + sampler.localization
            sd = (a * (1 - sampler.lr * a / 4).clamp(min=0.5)).rsqrt()
            p.state = p.state._replace(position=p.state.position + sd[p.member] * p.random.normal())
            p.spread = float(sd.square().mean(1).max())


def _gradients(d: _DataSet, bound: Loss, at: Center, batch: Batch, seed: int) -> dict[int, Tensor]:
    """For each group, by id: the minibatch's gradient at w* ``[member, dim]``; one backward pass for all."""
    each = {id(p.group): p.group for p in d.passes}
    names = {slot.name for group in each.values() for slot in group.slots}
    whole = bound.gradient(sorted(names), at, batch, seed)
    return {key: center(group, whole) for key, group in each.items()}


def _control(
    control: Tensor, d: _DataSet, bound: Loss, at: Center, batch: Batch, seed: int
) -> None:
    """Put (g_B − ĝ)·(v − v*) of each run where it belongs."""
    found = _gradients(d, bound, at, batch, seed)
    for p in d.passes:
        tilt = (found[id(p.group)] - p.slope)[p.member]
        control[p.refinement, p.chain] = (tilt * (p.state.position - p.origin[p.member])).sum(
            1, dtype=torch.float64
        )


def _without(datasets: Sequence[_DataSet], stopped: Collection[int]) -> list[_DataSet]:
    """The same passes without the runs of some refinements."""
    left = []
    for d in datasets:
        passes = []
        for p in d.passes:
            keep = [i for i, r in enumerate(p.refinement.tolist()) if r not in stopped]
            if keep:
                some = torch.tensor(keep, device=p.chain.device)
                passes.append(
                    replace(
                        p,
                        member=p.member[some],
                        refinement=p.refinement[some],
                        chain=p.chain[some],
                        random=Random(
                            [p.random.streams[i] for i in keep], p.random.dim, p.random.device
                        ),
                        state=type(p.state)(*(part[some] for part in p.state)),
                    )
                )
        if passes:
            refinements = torch.cat([p.refinement for p in passes]).unique()
            left.append(replace(d, passes=passes, refinements=refinements))
    return left


def _runs_away(p: _Pass, lr: float, t: int) -> Tensor:
    """``[run]``: after step t, further from w*, per weight, than any chain that samples.

    The loss may be finite there and even before, but means nothing. A first step looks like a free walk at any ``lr``, so
    the loss after a step counts only when the next step does not run away either: one draw is judged as many are.
    """
    square = (p.state.position - p.origin[p.member]).square().mean(1)
    return ~(square <= _FREE_WALKS**2 * (lr * t + p.spread))


def _positions(passes: Sequence[tuple[_Pass, Tensor]], num_chains: int, refinement: int) -> Tensor:
    found = [(p, position, (p.refinement == refinement).nonzero()[:, 0]) for p, position in passes]
    parts = [(p.chain[runs], position[runs]) for p, position, runs in found if len(runs)]
    chains, position = torch.cat([c for c, _ in parts]), torch.cat([v for _, v in parts])
    assert len(chains) == num_chains
    return position[chains.argsort()]


def _sort_tokens(
    tokens: dict[tuple[str, str], Tensor],
    p: _Pass,
    each: Tensor,
    refinements: Sequence[Refinement],
    num_chains: int,
) -> None:
    for r, c, losses in zip(p.refinement.tolist(), p.chain.tolist(), each, strict=True):
        tokens.setdefault(refinements[r].name, losses.new_empty(num_chains, *losses.shape))[c] = (
            losses
        )


def _plan(
    model: nn.Module,
    bound: Loss,
    refinements: Sequence[Refinement],
    masks: Sequence[Mapping[str, Tensor]],
    sampler: Sampler,
    sampling: Sampling,
    device: torch.device,
) -> list[_DataSet]:
    """Data sets -> groups -> passes of runs. What a run is given depends on its own refinement and chain alone."""
    parameters = dict(model.named_parameters())
    planned = []
    for name in dict.fromkeys(r.data_name for r in refinements):
        here = [i for i, r in enumerate(refinements) if r.data_name == name]
        data, whole = refinements[here[0]].data, refine.fingerprint(refinements[here[0]].data)
        passes: list[_Pass] = []
        for found in groups([masks[i] for i in here]):
            group = to(found, device)
            origin = center(group, parameters)
            seeds = [("noise", sampling.seed, digest(masks[here[i]]), whole) for i in group.members]
            runs = [(m, c) for m in range(len(group.members)) for c in range(sampling.num_chains)]
            size = sampling.runs_per_pass or _pass_size(
                bound.memory(group, _batch_shape(data, sampling)), device
            )
            for some in (runs[start : start + size] for start in range(0, len(runs), size)):
                streams = [
                    generator(*seeds[m], sampling.first_chain + c, device=device) for m, c in some
                ]
                member = torch.tensor([m for m, _ in some], device=device)
                chain = torch.tensor([c for _, c in some], device=device)
                refinement = torch.tensor([here[group.members[m]] for m, _ in some], device=device)
                state = sampler.init(origin[member])
                random = Random(streams, group.dim, device)
                passes.append(_Pass(group, member, refinement, chain, origin, random, state))
        minibatches = Minibatches(refine.num_rows(data), sampling.batch_size, seed=sampling.seed)
        planned.append(_DataSet(name, data, minibatches, torch.tensor(here, device=device), passes))
    return planned


def _batch_shape(data: refine.Rows, sampling: Sampling) -> tuple[int, ...]:
    return sampling.batch_size, *(
        data.rows.shape[1:] if isinstance(data, Tokens) else data[0].shape[1:]
    )


def _pass_size(bytes_per_run: int, device: torch.device) -> int:
    """See ``Sampling.runs_per_pass``."""
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] // 4
    else:
        budget = min(_free_memory() // 4, _CPU_PASS)
    budget = 2 ** (
        int(budget).bit_length() - 1
    )  # the same from day to day, so that rounding is, too
    return max(1, budget // max(bytes_per_run, 1))


def _free_memory() -> int:
    """What Linux says is available, page cache included; elsewhere 4 GiB."""
    known = Path("/proc/meminfo")
    if not known.exists():
        return 4 * 2**30
    line = next(line for line in known.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def _there(
    model: nn.Module, loss: LossFunction | None, sampling: Sampling
) -> tuple[nn.Module, Any, torch.device]:
    """The model and loss on the device asked for: themselves where they are there already, else one copy."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(
            f"sampling {type(model).__name__}: it has no parameters; expected a torch.nn.Module with weights."
        )
    try:
        device = parameter.device if sampling.device is None else torch.device(sampling.device)
    except RuntimeError as error:
        raise InputError(
            f"Sampling: `device` must be such as 'cpu' or 'cuda', got {sampling.device!r}."
        ) from error
    if isinstance(loss, Distillation):
        loss = Distillation(_moved(loss.generator, device))
    model = _moved(model, device)
    return model, loss, next(model.parameters()).device


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    here = next((p.device for p in model.parameters()), device)
    same = device.type == here.type and device.index in (None, here.index)
    return model if same else copy.deepcopy(model).to(device)
