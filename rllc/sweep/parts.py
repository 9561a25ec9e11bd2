"""Which part of some draws goes into which file of a cell, and how the parts become draws again.

No other file of the sweep looks into :class:`rllc.Draws`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rllc.sampling.draws import Draws
from rllc.sweep.plan import Cell
from rllc.weights.names import Names

Chains = tuple[int, int]
"""Numbers of the first chain and of the one behind the last."""

_OF_ONE_CELL = ("cell", "identity", "ambient", "fingerprints")
"""Settings that say where numbers come from and change none."""
_BY_DATA = ("fingerprints", "minibatches")
"""Settings by the name of the data set."""

COVARIANCE = ".covariance"
"""After an observable's name, where only moments of it are kept."""


def for_cell(draws: Draws, observe: Collection[str]) -> Draws:
    """Return the draws as a cell's own file keeps them.

    Args:
        observe: names of the observables that have files of their own.
    """
    observed = {}
    for name, array in draws.observed.items():
        if name.removesuffix(COVARIANCE) not in observe:
            observed[name] = array
    # What chains that go on are compared by stands beside their states.
    settings = _without(_without(draws.settings, "observed"), "identity")
    return replace(draws, settings=settings, observed=observed, states={})


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    rest = dict(settings)
    rest.pop(name, None)
    return rest


def observed_arrays(draws: Draws, name: str) -> dict[str, np.ndarray]:
    """Return what was kept of one observable."""
    arrays = {}
    for key in (name, name + COVARIANCE):
        if key in draws.observed:
            arrays[key] = draws.observed[key]
    return arrays


def observed_axes(draws: Draws, name: str) -> list[str]:
    """Return the names of an observable's further axes."""
    return list(draws.settings["observed"][name])


def with_observed(
    draws: Draws, arrays: Mapping[str, np.ndarray], axes: Mapping[str, Sequence[str]]
) -> Draws:
    """Return the draws of a cell with what was observed along them."""
    return replace(
        draws,
        observed={**draws.observed, **arrays},
        settings={**draws.settings, "observed": dict(axes)},
    )


def endings(draws: Draws) -> Draws:
    """Return the last draw with the states of the chains: what is needed to go on from there."""
    ending = for_cell(draws, ())
    identity = draws.settings.get("identity")
    settings = ending.settings if identity is None else {**ending.settings, "identity": identity}
    return replace(
        ending,
        settings=settings,
        loss=draws.loss[..., -1:],
        baseline=draws.baseline[..., -1:],
        observed={},
        lengths=(),
        states=draws.states,
    )


def end_alike(draws: Draws, ending: Draws) -> bool:
    """Whether an ending is that of these draws, and not of another machine's roundings."""
    last = draws.loss[..., -1:]
    return np.array_equal(ending.loss, last, equal_nan=True)


def resumable(draws: Draws, ending: Draws, cell: Cell, weights: Sequence[str]) -> Draws:
    """Return the draws of some weights with their states, for ``rllc.sample(..., resume=...)``."""
    chosen = joined([draws], [(0, cell.num_chains)], weights)
    settings = dict(chosen.settings)
    settings["first_chain"] = cell.chains[0]
    settings["cell"] = draws.settings["cell"]
    settings["identity"] = ending.settings.get("identity", {})
    states = {}
    for pair in chosen.names:
        if pair in ending.states:
            states[pair] = ending.states[pair]
    return replace(chosen, settings=settings, states=states)


def joined(parts: Sequence[Draws], chains: Sequence[Chains], weights: Sequence[str]) -> Draws:
    """Return the draws of some weights on one data set, with the chains of several cells together.

    Args:
        parts: each holds some chains of all of ``weights``, and perhaps more.
        chains: of each part. A chain that is in two parts is taken from the first.
    """
    first = parts[0]
    rows = [[part.weights.index(name) for name in weights] for part in parts]
    skips = []
    num_chains = 0
    for begin, end in chains:
        skips.append(num_chains - begin)
        num_chains = end

    def together(arrays: Sequence[np.ndarray]) -> np.ndarray:
        new_chains = []
        for array, chosen, skip in zip(arrays, rows, skips, strict=True):
            # Most cells are taken whole, and need no copy.
            taken = array if chosen == list(range(len(array))) else array[chosen]
            new_chains.append(taken[:, skip:])
        return new_chains[0] if len(new_chains) == 1 else np.concatenate(new_chains, axis=1)

    losses: dict[str, Any] = {}
    for name in ("loss", "baseline", "diverged"):
        arrays = [getattr(part, name) for part in parts]
        losses[name] = together(arrays)
    observed = {}
    for name, array in first.observed.items():
        if not all(name in part.observed for part in parts):
            continue
        if not _has_chains(first, name):
            observed[name] = array[rows[0]]
            continue
        arrays = [part.observed[name] for part in parts]
        observed[name] = together(arrays)
    counts = {"num_chains": num_chains, "first_chain": 0}
    return replace(
        first,
        **losses,
        observed=observed,
        names=first.names.take(rows[0]),
        lengths=tuple(first.lengths[row] for row in rows[0]),
        settings=_without(first.settings, "cell") | counts,
    )


def stacked(parts: Sequence[Draws]) -> Draws:
    """Return draws that are :func:`likeness` to each other as one, their refinements in turn.

    Settings are those of the first part, as far as they are the same in all.
    """
    first = parts[0]
    names = [pair for part in parts for pair in part.names]
    lengths = [length for part in parts for length in part.lengths]
    observed = {}
    for name in first.observed:
        observed[name] = np.concatenate([part.observed[name] for part in parts])
    return Draws(
        loss=np.concatenate([part.loss for part in parts]),
        baseline=np.concatenate([part.baseline for part in parts]),
        diverged=np.concatenate([part.diverged for part in parts]),
        names=Names.of(names),
        settings=first.settings,
        lengths=tuple(lengths),
        observed=observed,
    )


def of_one_checkpoint(parts: Sequence[Draws]) -> Draws:
    """Return draws of one model as one, whatever their data, their refinements in turn.

    Raises:
        ValueError: they differ in more than weights and data.
    """
    by_data: dict[str, dict[str, Any]] = {name: {} for name in _BY_DATA}
    of_all = []
    for draws in parts:
        for name, merged in by_data.items():
            merged |= draws.settings.get(name, {})
        of_all.append(replace(draws, settings={**draws.settings, **dict.fromkeys(_BY_DATA)}))
    if len({_likeness(draws) for draws in of_all}) > 1:
        raise ValueError("they differ in more than weights and data")
    together = stacked(parts)
    return replace(together, settings={**together.settings, **by_data})


def likeness(draws: Draws) -> str | None:
    """Return what draws have in common whose estimates may be made at once; ``None``: nothing.

    It is all that :meth:`rllc.Estimate.of` looks at beside each refinement's own numbers.
    """
    if draws.settings.get("relaxation") is None:
        return None  # what chains forget is then read from all refinements together
    return _likeness(draws)


def _likeness(draws: Draws) -> str:
    settings = dict(draws.settings)
    for name in _OF_ONE_CELL:
        settings.pop(name, None)
    shapes = {name: array.shape[1:] for name, array in draws.observed.items()}
    noise = draws.observed.get("minibatch_variance")
    is_noisy = noise is None or bool(noise.any())
    return repr((settings, draws.loss.shape[1:], sorted(shapes.items()), is_noisy))


def _has_chains(draws: Draws, name: str) -> bool:
    """Whether an observable was measured for each chain, and not once for the refinement."""
    axes = draws.settings.get("observed", {}).get(name, ())
    return draws.observed[name].ndim > 1 + len(axes)


def state_bytes(draws: Draws) -> int:
    """Return the bytes of the chains' states on disk."""
    size = 0
    for state in draws.states.values():
        for array in state.values():
            size += array.nbytes
    return size


def observed_bytes(draws: Draws, name: str) -> int:
    """Return the bytes of what was kept of one observable."""
    arrays = observed_arrays(draws, name)
    return sum(array.nbytes for array in arrays.values())
