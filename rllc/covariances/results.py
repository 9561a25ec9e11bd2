"""The common part of susceptibilities, influence and loss kernels: their axes, tables and files."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rllc.errors import InputError, must_be
from rllc.estimates.estimate import import_xarray
from rllc.estimates.faults import FINAL, Fault, faults_from_json, faults_to_json, status_of
from rllc.limits import Limits
from rllc.sampling.draws import Draws, check_settings
from rllc.statistics.covariance import Covariance
from rllc.storage.files import load_arrays, reading, save_arrays
from rllc.storage.same import same
from rllc.sweep.sweep import Sweep
from rllc.tables import AsTable, Table, label, not_ok
from rllc.weights.names import Names, OfRefinements

if TYPE_CHECKING:
    import pandas as pd

Result = TypeVar("Result", bound="Covariances")


@dataclass(frozen=True, eq=False, repr=False)
class Covariances(OfRefinements, AsTable):
    """Covariances along the chains of each refinement; each kind of result is a subclass.

    Args:
        value: ``[refinement, *axes]``, in squared nats.
        standard_error: same shape.
        dof: same shape: degrees of freedom of the error.
        within: same shape: the value by deviations from each chain's own means, which offsets
            between chains do not enter.
        agreement: same shape: the p-value that chains which agree lie as far apart.
        faults: ``[refinement]``: what is wrong with its chains.
        names: the (weights, data) of each refinement.
        settings: of sampler and sampling.
        kind: what the values are, such as ``"susceptibility"``.
        axes: names of the further axes.
    """

    value: np.ndarray
    standard_error: np.ndarray
    dof: np.ndarray
    within: np.ndarray
    agreement: np.ndarray
    faults: tuple[tuple[Fault, ...], ...]
    names: Names
    settings: Mapping[str, Any]
    kind: str
    axes: tuple[str, ...]

    @property
    def with_errors(self) -> Covariance:
        """The values of all refinements, with errors."""
        arrays = [getattr(self, name) for name in Covariance._fields]
        return Covariance(*arrays)

    @property
    def status(self) -> tuple[str, ...]:
        """``[refinement]``: ``"ok"``, or what is wrong with its chains."""
        return tuple(status_of(wrong) for wrong in self.faults)

    def marks(self, limits: Limits | None = None) -> np.ndarray:
        """Return a mark for each value, ``[refinement, *axes]``, as texts.

        ``"ok"``; ``"chains disagree"`` where they sit apart and move the value by more than half
        its error; ``"no chains"`` where a chain diverged or a cell is missing; ``"nothing
        predicted"`` where the loss has no value; ``"constant"`` where nothing moved.

        Args:
            limits: ``false_alarm`` is used; ``None`` is ``Limits()``.
        """
        limits = limits or Limits()
        disagrees = self.with_errors.disagrees(limits.false_alarm)
        is_constant = (self.value == 0) & (self.standard_error == 0)
        is_missing = np.isnan(self.value)
        marks = np.full(self.value.shape, "ok", dtype=object)
        # The last mark that fits counts.
        marks[disagrees] = "chains disagree"
        marks[is_constant] = "constant"
        marks[is_missing] = "nothing predicted"
        for i, faults in enumerate(self.faults):
            if any(fault.kind in FINAL for fault in faults):
                marks[i] = "no chains"
        return marks

    def __getitem__(self, weights: str | tuple[str, str]) -> Covariance:
        """The values of one refinement, ``[*axes]``.

        Raises:
            InputError: there is no such refinement.
        """
        key = (weights,) if isinstance(weights, str) else weights
        refinement = self.names.index(*key, of=self.kind)
        return self.with_errors.take(refinement)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and same(self, other)

    def __hash__(self) -> int:
        return hash(self.names)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a value: ``weights, data``, the axes, the value by its kind, its error.

        ``dof, within, agreement`` and ``status`` follow.
        """
        import pandas as pd

        indices = np.indices(self.value.shape)
        refinements, *places = indices.reshape(self.value.ndim, -1)
        columns: dict[str, Any] = dict(self.names.columns(refinements))
        columns |= zip(self.axes, places, strict=True)
        columns[self.kind] = self.value.ravel()
        for name in Covariance._fields[1:]:
            columns[name] = getattr(self, name).ravel()
        columns["status"] = self.marks().ravel()
        return pd.DataFrame(columns)

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset`` with the dimension ``refinement`` and the axes.

        Raises:
            InputError: xarray is not installed.
        """
        xarray = import_xarray(f"{type(self).__name__}.to_xarray")
        dims = ("refinement", *self.axes)
        arrays = {self.kind: (dims, self.value)}
        for name in Covariance._fields[1:]:
            arrays[name] = (dims, getattr(self, name))
        labels = [label(self.names, i) for i in range(len(self.names))]
        return xarray.Dataset(arrays, coords={"refinement": labels})

    @property
    def _table(self) -> Table:
        rows = [("weights", "lowest", "highest", "median se", "marked", "status")]
        for i, marks in enumerate(self.marks()):
            num_marked = (marks == "chains disagree").sum()
            row = (
                label(self.names, i),
                _shown(self.value[i], np.min, ".3g"),
                _shown(self.value[i], np.max, ".3g"),
                _shown(self.standard_error[i], np.median, ".2g"),
                str(num_marked),
                self.status[i],
            )
            rows.append(row)
        lengths = self.value.shape[1:]
        size = " × ".join(map(str, lengths))
        axes = " × ".join(self.axes)
        name = type(self).__name__
        title = f"{name}: {self.kind}, {size} ({axes})"
        wrong = not_ok(self.status, column=5)
        return Table(title, rows, left=(0, 5), wrong=wrong)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one atomic, checksummed file (``.npz``)."""
        arrays: dict[str, np.ndarray] = {}
        header: dict[str, Any] = {"kind": _kind(type(self))}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif isinstance(value, Covariance):
                for name, array in value._asdict().items():
                    arrays[f"{field.name}.{name}"] = array
            elif field.name not in ("faults", "names", "settings", "kind"):
                header[field.name] = value
        header |= {
            "of": self.kind,
            "weights": self.weights,
            "names of data": self.data,
            "faults": [faults_to_json(wrong) for wrong in self.faults],
            "settings": dict(self.settings),
        }
        return save_arrays(path, arrays, header)

    @classmethod
    def load(cls: type[Result], path: str | os.PathLike[str]) -> Result:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: there is no such file, it is damaged, or it holds something else.
        """
        arrays, header = load_arrays(path, kind=_kind(cls))
        with reading(path):
            faults = tuple(faults_from_json(written) for written in header["faults"])
            weights = tuple(header["weights"])
            data = tuple(header["names of data"])
            values: dict[str, Any] = {
                "faults": faults,
                "names": Names(weights, data),
                "settings": header["settings"],
                "kind": header["of"],
            }
            for field in fields(cls):
                if field.name not in values:
                    values[field.name] = _value_in_file(field.name, arrays, header)
            _check_read(values)
            return cls(**values)


def _kind(result: type) -> str:
    """The kind that a file of this class names, such as ``"rllc.covariances.LossKernel"``."""
    return f"rllc.covariances.{result.__name__}"


def _value_in_file(name: str, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> Any:
    """The value of a field: an array, a covariance of several arrays, or names."""
    if name in arrays:
        return arrays[name]
    if f"{name}.value" in arrays:
        parts = [arrays[f"{name}.{part}"] for part in Covariance._fields]
        return Covariance(*parts)
    return tuple(header[name])


def _check_read(values: Mapping[str, Any]) -> None:
    """Refuse values of a file that do not fit together.

    Raises:
        ValueError: shapes differ, or axes have no names.
    """
    check_settings(values["settings"])
    shape = values["value"].shape
    for name in Covariance._fields:
        array = values[name]
        if array.shape != shape or array.dtype.kind not in "fiub":
            raise ValueError(
                f"{name} is {list(array.shape)} of {array.dtype}, expected numbers {list(shape)}"
            )
    lengths = {"faults": len(values["faults"]), "names": len(values["names"])}
    if not shape or set(lengths.values()) != {shape[0]}:
        raise ValueError(f"value has the shape {list(shape)}, but there are {lengths}")
    axes = values["axes"]
    num_axes = len(shape) - 1
    are_names = all(isinstance(axis, str) for axis in axes)
    if len(axes) != num_axes or not are_names:
        raise ValueError(f"axes {axes!r:.40} are not {num_axes} names")


def each_checkpoint(sweep: Sweep, make: Callable[[Draws], Result]) -> dict[int, Result]:
    """Make a result of what was observed at each checkpoint of a sweep.

    >>> observe = {"probes": rllc.losses_on(probes)}                               # doctest: +SKIP
    >>> rllc.track(run, data, rllc.heads, store=rllc.sweep.Store("sweep", observe=observe))
    ...                                                                            # doctest: +SKIP
    >>> make = rllc.covariances.Susceptibilities.of                                # doctest: +SKIP
    >>> chi = each_checkpoint(rllc.Sweep.open("sweep"), make)                      # doctest: +SKIP

    Cells that are finished are not computed again: the same call of :func:`rllc.track` goes on.
    Where a cell is missing or has failed, values are NaN and the fault says so. Draws are read
    one refinement at a time.

    Args:
        sweep: of a store that observed what ``make`` needs.
        make: from the draws of one refinement, such as ``Susceptibilities.of`` or
            ``lambda draws: LossKernel.of(draws, by="token")``.

    Returns:
        By step, the result of all refinements of the sweep.

    Raises:
        InputError: an argument is something else, no cell is finished, or cells did not observe
            what ``make`` needs.
        FileError: a file of the store is damaged.
    """
    right = isinstance(sweep, Sweep)
    must_be("each_checkpoint", "sweep", sweep, right, "what rllc.Sweep.open gave")
    must_be("each_checkpoint", "make", make, callable(make), "a function of draws")
    result_of_cell: dict[tuple[int, str, str], Result] = {}
    for step, weights, data in sweep.finished:
        draws = sweep.draws(step, weights, data)
        result_of_cell[step, weights, data] = make(draws)
    if not result_of_cell:
        raise InputError(
            "each_checkpoint: no cell of this sweep is finished; call rllc.track again."
        )
    like = next(iter(result_of_cell.values()))
    results = {}
    for step in sweep.steps:
        parts = []
        for weights, data in sweep.names:
            cell = (step, weights, data)
            if cell in result_of_cell:
                parts.append(result_of_cell[cell])
                continue
            fault = Fault("missing")
            if cell in sweep.failed:
                fault = Fault("failed", {}, sweep.failed[cell])
            names = Names((weights,), (data,))
            parts.append(_absent(like, names, fault))
        results[step] = joined(parts)
    return results


def joined(parts: Sequence[Result]) -> Result:
    """Return results of different refinements as one, along the refinement axis."""
    joined_fields: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            joined_fields[field.name] = np.concatenate(values)
        elif isinstance(values[0], Covariance):
            joined_arrays = [np.concatenate(arrays) for arrays in zip(*values, strict=True)]
            joined_fields[field.name] = Covariance(*joined_arrays)
    faults: list[tuple[Fault, ...]] = []
    pairs: list[tuple[str, str]] = []
    for part in parts:
        faults += part.faults
        pairs += part.names
    names = Names.of(pairs)
    return replace(parts[0], faults=tuple(faults), names=names, **joined_fields)


def _absent(like: Result, names: Names, fault: Fault) -> Result:
    """The result of a refinement without draws: NaN in the shape of another result."""
    all_nan: dict[str, Any] = {}
    for field in fields(like):
        value = getattr(like, field.name)
        if isinstance(value, np.ndarray):
            all_nan[field.name] = np.full(value.shape, np.nan)
        elif isinstance(value, Covariance):
            arrays = [np.full(array.shape, np.nan) for array in value]
            all_nan[field.name] = Covariance(*arrays)
    return replace(like, faults=((fault,),), names=names, **all_nan)


def _shown(values: np.ndarray, summary: Callable[[np.ndarray], Any], digits: str) -> str:
    """A summary of the finite values, or a dash."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "–"
    return f"{summary(finite):{digits}}"
