"""What sampling gives: losses with named axes, each beside the loss at w* on the same minibatch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllc.errors import FileError, InputError
from rllc.files import load_arrays, save_arrays

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Draws:
    """Every draw of every chain of every refinement; :func:`rllc.sample` makes it, ``Estimate.of`` sums it up.

    Args:
        loss: ``[refinement, chain, draw]``, nats per token: mean loss of the minibatch at the draw; NaN from the step on at
            which a chain diverged.
        baseline: same shape: the mean loss at w* on the same minibatch. Subtracting it removes the minibatch's own
            difficulty, which is most of the noise.
        diverged: ``[refinement, chain]``: the step at which the chain diverged, −1 if it did not.
        weights: name of each refinement's weights.
        data: name of each refinement's data.
        settings: of sampler and sampling, ``n_beta`` among them.
        control: same shape as ``loss``, with ``Sampling(control_variate=True)``: (g_B − ḡ)·(v − v*), 0 on average.
        noise: same shape: the variance of loss − baseline that comes from the choice of the minibatch, estimated from how its
            rows differ.
        probes: what :mod:`rllc.probes` saw: ``"acceptance"`` and ``"discretisation"`` ``[refinement, chain, probe]``,
            ``"max_curvature"`` ``[refinement]``. Empty with ``Sampling(num_probes=0)``.
        lengths: ``[refinement]``: how many draws each has; fewer than the others' where ``target_se`` was reached, and
            NaN behind them. Left out: all.
        tokens: with ``per_token``, each refinement's ``[chain, draw, batch(, pos)]`` losses.
        token_baseline: with ``per_token``, each data set's ``[draw, batch(, pos)]`` losses at w*.
        rows: with ``per_token``, which rows of each data set the minibatches held, ``[draw, batch]``.
        states: with ``keep_states``, what each refinement's chains need to go on, each array ``[chain, …]``: what of the
            sampler's state differs from its beginning, the random generators' and, with ``control_variate``, ĝ. For
            ``sample(resume=draws)``.
    """

    loss: np.ndarray
    baseline: np.ndarray
    diverged: np.ndarray
    weights: tuple[str, ...]
    data: tuple[str, ...]
    settings: Mapping[str, Any]
    control: np.ndarray | None = None
    noise: np.ndarray | None = None
    probes: Mapping[str, np.ndarray] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    tokens: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    token_baseline: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    states: Mapping[tuple[str, str], Mapping[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths:
            object.__setattr__(self, "lengths", (self.loss.shape[-1],) * len(self.loss))

    @property
    def llc(self) -> np.ndarray:
        """nβ (loss − baseline − control) ``[refinement, chain, draw]``: each draw's contribution; λ̂ is their mean."""
        return self.settings["n_beta"] * (
            self.loss - self.baseline - (0.0 if self.control is None else self.control)
        )

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
        which = index.get_level_values(0)
        return pd.DataFrame(
            {
                "weights": np.array(self.weights, dtype=object)[which],
                "data": np.array(self.data, dtype=object)[which],
                "chain": index.get_level_values(1),
                "draw": index.get_level_values(2),
                "loss": self.loss.ravel(),
                "baseline": self.baseline.ravel(),
                "llc": self.llc.ravel(),
            }
        )

    def to_inferencedata(self) -> Any:
        """The draws as an ``arviz.InferenceData``, for its plots and tables; needs ``pip install "arviz<1"``.

        ``posterior`` has ``llc``, ``loss`` and ``baseline`` with dimensions chain, draw and refinement (named
        ``"weights, data"``), ``sample_stats`` has ``diverging``.

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
            posterior={name: np.moveaxis(a, 0, -1) for name, a in arrays.items()},
            sample_stats={"diverging": np.moveaxis(diverging, 0, -1)},
            coords={
                "refinement": [f"{w}, {d}" for w, d in zip(self.weights, self.data, strict=True)]
            },
            dims={name: ["refinement"] for name in (*arrays, "diverging")},
            attrs={"settings": json.dumps(dict(self.settings))},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays = {"loss": self.loss, "baseline": self.baseline, "diverged": self.diverged}
        arrays |= {
            name: a for name in ("control", "noise") if (a := getattr(self, name)) is not None
        }
        arrays |= {f"probes.{name}": a for name, a in self.probes.items()}
        keys = list(self.tokens)
        arrays |= {f"tokens.{i}": self.tokens[key] for i, key in enumerate(keys)}
        arrays |= {f"token_baseline.{name}": a for name, a in self.token_baseline.items()}
        arrays |= {f"rows.{name}": a for name, a in self.rows.items()}
        for i, state in enumerate(self.states.values()):
            arrays |= {f"states.{i}.{name}": a for name, a in state.items()}
        header = {
            "kind": "rllc.Draws",
            "weights": self.weights,
            "data": self.data,
            "settings": dict(self.settings),
        }
        header |= {"tokens": keys, "lengths": self.lengths} | (
            {"states": list(self.states)} if self.states else {}
        )
        return save_arrays(path, arrays, header, compress=not (self.tokens or self.states))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Draws:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, a damaged one, or one that holds something else.
        """
        arrays, header = load_arrays(path)
        if header.get("kind") != "rllc.Draws":
            raise FileError(
                f"reading {path} as Draws: it holds {header.get('kind', 'something else')}."
            )

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {
                name.removeprefix(prefix): a
                for name, a in arrays.items()
                if name.startswith(prefix)
            }

        return cls(
            loss=arrays["loss"],
            baseline=arrays["baseline"],
            diverged=arrays["diverged"],
            weights=tuple(header["weights"]),
            data=tuple(header["data"]),
            settings=header["settings"],
            control=arrays.get("control"),
            noise=arrays.get("noise"),
            probes=under("probes."),
            lengths=tuple(header["lengths"]),
            tokens={tuple(key): arrays[f"tokens.{i}"] for i, key in enumerate(header["tokens"])},
            token_baseline=under("token_baseline."),
            rows=under("rows."),
            states={
                tuple(key): under(f"states.{i}.") for i, key in enumerate(header.get("states", ()))
            },
        )
