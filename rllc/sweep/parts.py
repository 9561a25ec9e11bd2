"""Which part of some draws goes into which file of a cell, and how the parts become draws again.

No other file of the sweep looks into :class:`rllc.Draws`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rllc.draws import Draws
from rllc.sweep.plan import Cell

Chains = tuple[int, int]
"""Numbers of the first chain and of the one behind the last."""


def without_extras(draws: Draws) -> Draws:
    """Return the draws as a cell's own file keeps them: without states and losses per token."""
    return replace(draws, states={}, tokens={}, token_baseline={}, rows={})


def endings(draws: Draws) -> Draws:
    """Return the last draw with the states of the chains: what is needed to go on from there."""
    last = {}
    for name in ("loss", "baseline", "noise", "control"):
        array = getattr(draws, name)
        if array is not None:
            last[name] = array[..., -1:]
    bare = without_extras(draws)
    return replace(bare, **last, probes={}, lengths=(), states=draws.states)


def end_alike(draws: Draws, ending: Draws) -> bool:
    """Whether an ending is that of these draws, and not of another machine's roundings."""
    return np.array_equal(ending.loss[..., 0], draws.loss[..., -1], equal_nan=True)


def resumable(draws: Draws, ending: Draws, cell: Cell, weights: Sequence[str]) -> Draws:
    """Return the draws of some weights with their states, for ``rllc.sample(..., resume=...)``."""
    chosen = joined([draws], [(0, draws.loss.shape[1])], weights)
    about = {"first_chain": cell.chains[0], "cell": draws.settings["cell"]}
    states = {key: state for key, state in ending.states.items() if key[0] in weights}
    return replace(chosen, settings={**chosen.settings, **about}, states=states)


def joined(parts: Sequence[Draws], chains: Sequence[Chains], weights: Sequence[str]) -> Draws:
    """Return the draws of some weights on one data set, with the chains of several cells together.

    Args:
        parts: each holds some chains of all of ``weights``, and perhaps more.
        chains: of each part. A chain that is in two parts is taken from the first.
    """
    first = parts[0]
    rows = [[part.weights.index(name) for name in weights] for part in parts]
    skips = []
    end_of_previous = 0
    for begin, end in chains:
        skips.append(end_of_previous - begin)
        end_of_previous = end

    def taken(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        if any(array is None for array in arrays):
            return None
        selected = [array[row] for array, row in zip(arrays, rows, strict=True)]
        if selected[0].ndim == 1:  # one number a refinement, whatever its chains
            return selected[0]
        new = [array[:, skip:] for array, skip in zip(selected, skips, strict=True)]
        return np.concatenate(new, axis=1)

    arrays = {}
    for name in ("loss", "baseline", "diverged", "control", "noise"):
        arrays[name] = taken([getattr(part, name) for part in parts])
    probes = {name: taken([part.probes[name] for part in parts]) for name in first.probes}
    tokens = {}
    for key in first.tokens:
        if all(key in part.tokens for part in parts):
            new = [part.tokens[key][skip:] for part, skip in zip(parts, skips, strict=True)]
            tokens[key] = np.concatenate(new)
    settings = {name: value for name, value in first.settings.items() if name != "cell"}
    return replace(
        first,
        **arrays,
        probes=probes,
        tokens=tokens,
        weights=tuple(weights),
        data=(first.data[0],) * len(weights),
        lengths=tuple(first.lengths[row] for row in rows[0]),
        settings={**settings, "num_chains": end_of_previous, "first_chain": 0},
    )


# Losses per token.


def token_arrays(draws: Draws, earlier: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return losses per token in half precision: those at w*, and the differences to them.

    Float16 has 11 bits. Of a loss of 3 nats, which at a draw may have risen by 0.01, they leave
    ± 0.001. Of the difference they leave ± 0.00001, far below its noise, so that means, variances
    and covariances over draws stay what they are.

    Args:
        earlier: what this gave for the draws that these go on from; empty if there are none.
    """
    (data,) = draws.token_baseline
    baseline = draws.token_baseline[data]
    rows = draws.rows[data].astype(np.int32)
    arrays = {"rows": rows, "baseline": baseline.astype(np.float16)}
    for i, weights in enumerate(draws.weights):
        losses = draws.tokens[weights, data]
        num_draws = losses.shape[1]
        rise = losses - baseline[:num_draws]
        end = draws.lengths[i]
        rise[np.isnan(draws.loss[i, :, end - num_draws : end])] = np.nan
        with np.errstate(over="ignore"):  # infinite where a chain is about to diverge
            arrays[f"rise.{weights}"] = rise.astype(np.float16)
    if not earlier:
        return arrays
    longer = {}
    for name, array in arrays.items():
        draw_axis = 1 if name.startswith("rise.") else 0
        longer[name] = np.concatenate([earlier[name], array], axis=draw_axis)
    return longer


def with_tokens(draws: Draws, arrays: Mapping[str, np.ndarray], data: str, weights: str) -> Draws:
    """Return the draws with the losses per token of some weights, in float32."""
    baseline = arrays["baseline"].astype(np.float32)
    rise = arrays[f"rise.{weights}"]
    losses = baseline[: rise.shape[1]] + rise.astype(np.float32)
    return replace(
        draws,
        tokens={(weights, data): losses},
        token_baseline={data: baseline},
        rows={data: arrays["rows"].astype(np.int64)},
    )


def kept_bytes(draws: Draws) -> dict[str, Any]:
    """Return the bytes of the states and, for one draw, of the losses per token, on disk."""
    states = 0
    for state in draws.states.values():
        states += sum(array.nbytes for array in state.values())
    numbers = 0
    for losses in (draws.tokens, draws.token_baseline):
        numbers += sum(array.size for array in losses.values())
    return {"states": states, "losses per token": 2 * numbers}
