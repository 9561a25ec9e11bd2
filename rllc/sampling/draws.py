"""The result of sampling: losses with named axes, and the loss at w* on the same minibatches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import InputError
from rllc.storage.files import check_fields, check_shapes, load_arrays, reading, save_arrays
from rllc.storage.same import same
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Draws(OfRefinements):
    """Every draw of every chain of every refinement, as :func:`rllc.sample` makes it.

    ``Estimate.of`` sums it up.

    Args:
        loss: ``[refinement, chain, draw]``, nats per token: mean loss of the minibatch at the draw,
            over what counts; NaN from the step on at which a chain diverged.
        baseline: same shape: the mean loss at w* on the same minibatch. Subtracting it removes the
            minibatch's own difficulty, which is most of the noise.
        diverged: ``[refinement, chain]``: the step at which the chain diverged, −1 if it did not.
        names: the (weights, data) pairs along the refinement axis.
        settings: of sampler and sampling, ``n_beta`` among them; ``settings["observed"]`` names the
            further axes of what was observed, ``settings["minibatches"]`` by data set the
            ``batch_size`` and ``control_variate`` that were used.
        lengths: ``[refinement]``: how many draws each has. With ``target_se`` it may be fewer than
            the others have, and NaN behind them. Left out: all.
        observed: what was measured along the chains, by name. An observable of draws or probes is
            ``[refinement, chain, draw, *axes]``; one of the start ``[refinement, *axes]``; one of
            which only moments were kept ``[refinement, chain, *axes]``.
        states: what each refinement's chains need to go on, each array ``[chain, …]``, with
            ``Compute(keep_states=True)``. For ``sample(resume=draws)``.
    """

    loss: np.ndarray
    baseline: np.ndarray
    diverged: np.ndarray
    names: Names
    settings: Mapping[str, Any]
    lengths: tuple[int, ...] = ()
    observed: Mapping[str, np.ndarray] = field(default_factory=dict)
    states: Mapping[tuple[str, str], Mapping[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths:
            lengths = (self.loss.shape[-1],) * len(self.loss)
            object.__setattr__(self, "lengths", lengths)

    @property
    def num_draws(self) -> int:
        """The number of draws of the longest refinement."""
        return self.loss.shape[-1]

    @property
    def llc(self) -> np.ndarray:
        """nβ (loss − baseline − control) ``[refinement, chain, draw]``; λ̂ is their mean.

        The control variate is 0 where it was not measured; ``settings["minibatches"]`` says where
        it was.
        """
        control = self.observed.get("control", 0.0)
        return self.settings["n_beta"] * (self.loss - self.baseline - control)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Draws) and same(self, other)

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        refinements, chains, draws = self.loss.shape
        broken = int((self.diverged >= 0).sum())
        note = f", {broken} of {refinements * chains} chains diverged" if broken else ""
        return f"Draws({refinements} refinements × {chains} chains × {draws} draws{note})"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a draw: ``weights, data, chain, draw, loss, baseline, llc``."""
        import pandas as pd

        refinements, chains, draws = self.loss.shape
        index = pd.MultiIndex.from_product([range(refinements), range(chains), range(draws)])
        refinement = index.get_level_values(0)
        return pd.DataFrame(
            {
                "weights": np.array(self.weights, dtype=object)[refinement],
                "data": np.array(self.data, dtype=object)[refinement],
                "chain": index.get_level_values(1),
                "draw": index.get_level_values(2),
                "loss": self.loss.ravel(),
                "baseline": self.baseline.ravel(),
                "llc": self.llc.ravel(),
            }
        )

    def to_inferencedata(self) -> Any:
        """The draws as an ``arviz.InferenceData``, for its plots and tables.

        ``posterior`` has ``llc``, ``loss`` and ``baseline`` with dimensions chain, draw and
        refinement (named ``"weights, data"``); ``sample_stats`` has ``diverging``.

        Raises:
            InputError: arviz is not installed.
        """
        try:
            from arviz import from_dict
        except ImportError as error:
            raise InputError(
                'Draws.to_inferencedata needs arviz; type: pip install "rllc[arviz]"'
            ) from error
        arrays = {"llc": self.llc, "loss": self.loss, "baseline": self.baseline}
        diverging = (self.diverged >= 0)[..., None] & np.isnan(self.loss)
        return from_dict(
            posterior={name: np.moveaxis(array, 0, -1) for name, array in arrays.items()},
            sample_stats={"diverging": np.moveaxis(diverging, 0, -1)},
            coords={"refinement": [f"{weights}, {data}" for weights, data in self.names]},
            dims={name: ["refinement"] for name in (*arrays, "diverging")},
            attrs={"settings": json.dumps(dict(self.settings))},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {"loss": self.loss, "baseline": self.baseline, "diverged": self.diverged}
        for name, array in self.observed.items():
            arrays[f"observed.{name}"] = array
        for number, state in enumerate(self.states.values()):
            for name, array in state.items():
                arrays[f"states.{number}.{name}"] = array
        header = {
            "kind": "rllc.Draws",
            "weights": self.weights,
            "data": self.data,
            "settings": dict(self.settings),
            "lengths": self.lengths,
            "states": list(self.states),
        }
        # States are random bits, and so are most of the bits of what was observed.
        largest = max(_size(array) for array in arrays.values())
        compress = not self.states and largest < 2**26
        return save_arrays(path, arrays, header, compress=compress)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Draws:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, a damaged one, or one that holds something else.
        """
        arrays, header = load_arrays(path, kind="rllc.Draws")
        with reading(path):
            names = Names(tuple(header["weights"]), tuple(header["data"]))
            check_shapes(arrays, {"loss": 3, "baseline": 3, "diverged": 2}, len(names))
            check_settings(header["settings"])
            _check_alike(arrays, header["lengths"])
            states = {}
            for number, pair in enumerate(header["states"]):
                states[tuple(pair)] = _under(f"states.{number}.", arrays)
            return cls(
                loss=arrays["loss"],
                baseline=arrays["baseline"],
                diverged=arrays["diverged"],
                names=names,
                settings=dict(header["settings"]),
                lengths=tuple(map(int, header["lengths"])),
                observed=_under("observed.", arrays),
                states=states,
            )


_NEEDED = {
    "localization": "number",
    "lr": "number",
    "n_beta": "number",
    "num_burnin_steps": "count",
    "num_chains": "count",
    "num_draws": "count",
    "num_probes": "count",
    "num_steps_bw_draws": "count",
    "start": None,
    "target_se": None,
}
_OPTIONAL = {
    "relaxation": "number",
    "target_se": "number",
    "first_chain": "count",
    "fingerprints": "object",
    "minibatches": "object",
    "observed": "object",
}
_OF_MINIBATCHES = {"batch_size": "count", "control_variate": None}
"""The kinds of the settings that results look at."""


def check_settings(settings: object, needed: bool = True) -> None:
    """See that those settings that a result looks at are of the right kind.

    Args:
        settings: what a file says they are.
        needed: whether all must be there that an estimate needs.

    Raises:
        ValueError: one is of another kind.
        KeyError: one is missing.
    """
    checked = check_fields(settings, _NEEDED if needed else {})
    kinds = _NEEDED | _OPTIONAL
    given = [name for name in kinds if checked.get(name) is not None]
    check_fields(checked, {name: kinds[name] for name in given})
    if needed and checked["num_steps_bw_draws"] == 0:
        raise ValueError("num_steps_bw_draws is 0, expected at least 1")
    for of_data in (checked.get("minibatches") or {}).values():
        check_fields(of_data, _OF_MINIBATCHES)
    for axes in (checked.get("observed") or {}).values():
        check_fields({"observed": axes}, {"observed": "list"})


def _check_alike(arrays: Mapping[str, np.ndarray], lengths: Sequence[int]) -> None:
    """See that losses, and what was observed, are of the same refinements, chains and draws.

    Raises:
        ValueError: they are not.
    """
    shape = arrays["loss"].shape
    if arrays["baseline"].shape != shape or arrays["diverged"].shape != shape[:2]:
        raise ValueError("loss, baseline and diverged are of different shapes")
    is_one_each = len(lengths) == shape[0]
    if not is_one_each or not all(0 <= int(length) <= shape[2] for length in lengths):
        raise ValueError(f"lengths is not {shape[0]} numbers of draws")
    for name, array in arrays.items():
        if name.startswith("observed."):
            check_shapes({name: array}, {name: array.ndim}, shape[0])


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in names}


def _size(array: np.ndarray) -> int:
    return array.nbytes
