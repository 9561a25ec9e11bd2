"""The outputs, for all runs at once, of linear maps whose weights differ from run to run.

A map gives y = Wx + b. Where a part of W moves, run r gives y + (W_r − W)x, and only the rows and
columns of the part are multiplied. Where all of W moves, it gives W_r x.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllc.engine.layout import Group, Slot, center
from rllc.engine.torch_attention import Attention, InProjection, why_not


@dataclass(frozen=True, eq=False)
class Part:
    """The rows × columns of a matrix in which all weights of a slot are; a vector has one column.

    >>> slot = Slot("W", (2, 3), 0, 2, None, torch.tensor([[1, 4]]))
    >>> Part.of(slot).columns, Part.of(slot).size
    (tensor([[1]]), (2, 1))
    """

    slot: Slot
    rows: Tensor | None
    """``[member, row]``; ``None``: all."""
    columns: Tensor | None
    """``[member, column]``; ``None``: all."""
    places: Tensor | None
    """``[member, weight]``: where in ``[row · column]`` each weight is; ``None``: all, in order."""
    size: tuple[int, int]

    @classmethod
    def of(cls, slot: Slot) -> Part:
        """Find the smallest part that holds the weights of a slot, in each member of its group."""
        width = math.prod(slot.shape[1:])
        if slot.rows is None:
            num_rows = slot.shape[0]
        else:
            num_rows = slot.rows.shape[1]
        if slot.within is None:
            size = (num_rows, width)
            return cls(slot, slot.rows, None, None, size)
        row = slot.within // width
        column = slot.within % width
        columns = _touched(column, width)
        if columns is None:
            column_in_part = column
            num_columns = width
        else:
            column_in_part = torch.searchsorted(columns, column)
            num_columns = columns.shape[1]
        places = None
        num_weights = slot.within.shape[1]
        if num_weights < num_rows * num_columns:
            places = row * num_columns + column_in_part
        size = (num_rows, num_columns)
        return cls(slot, slot.rows, columns, places, size)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole matrix."""
        return self.rows is None and self.columns is None

    def put(self, weights: Tensor, member: Tensor, around: Tensor) -> Tensor:
        """Put the weights of each run into their part, ``[run, row, column]``.

        Args:
            weights: ``[run, weight]``.
            member: ``[run]``.
            around: ``[row, column]``, or one number: what the part holds where no weight moves.
        """
        runs = len(weights)
        if self.places is None:
            return weights.view(runs, *self.size)
        unmoved = around.to(weights.dtype).expand(self.size).reshape(1, -1)
        # Each run has a part of its own to put its weights into.
        unmoved = unmoved.expand(runs, -1)
        part = unmoved.scatter(1, self.places[member], weights)
        return part.view(runs, *self.size)


class Change(NamedTuple):
    """How a map differs in each run."""

    outputs: Tensor | None
    """``[run, o]``: which outputs change; ``None``: all."""
    inputs: Tensor | None
    """``[run, i]``: by which inputs; ``None``: by all."""
    matrix: Tensor | None
    """``[run, i, o]``: what is added to Wᵀ there; Wᵀ of the run where ``is_whole``."""
    is_whole: bool
    bias_outputs: Tensor | None
    """``[run, o]``: where the bias changes; ``None``: everywhere."""
    bias: Tensor | None
    """``[run, o]``: what is added to it."""


@dataclass(eq=False)
class LinearMap:
    """A module that multiplies by a matrix, of which a group moves some weights."""

    module: nn.Module
    is_transposed: bool
    """Whether the matrix is kept as [input, output]."""
    weight: Part | None = None
    bias: Part | None = None

    @cached_property
    def bias_goes_along(self) -> bool:
        """Whether the bias changes at the outputs at which the matrix does."""
        if self.weight is None or self.bias is None:
            return False
        outputs = self.weight.columns if self.is_transposed else self.weight.rows
        return _are_equal(outputs, self.bias.rows)

    def change(self, position: Tensor, origin: Tensor, member: Tensor) -> Change:
        """How the map differs in runs at ``position [run, dim]`` around ``origin [run, dim]``."""
        matrix = outputs = inputs = None
        is_whole = False
        if self.weight is not None:
            part = self.weight
            is_whole = part.is_whole
            matrix = self._matrix(part, position, origin, member)
            rows = _of_runs(part.rows, member)
            columns = _of_runs(part.columns, member)
            if self.is_transposed:
                outputs = columns
                inputs = rows
            else:
                outputs = rows
                inputs = columns
                matrix = matrix.mT
        bias = bias_outputs = None
        if self.bias is not None:
            columns_of_bias = _columns(self.bias.slot)
            bias = position[:, columns_of_bias] - origin[:, columns_of_bias]
            bias_outputs = _of_runs(self.bias.rows, member)
        return Change(outputs, inputs, matrix, is_whole, bias_outputs, bias)

    def _matrix(self, part: Part, position: Tensor, origin: Tensor, member: Tensor) -> Tensor:
        """The new matrix of each run where all of it moves, else its change in the part."""
        columns = _columns(part.slot)
        if part.is_whole:
            weight: Any = self.module.weight
            return part.put(position[:, columns], member, weight.detach())
        zero = position.new_zeros(())
        step = position[:, columns] - origin[:, columns]
        return part.put(step, member, zero)

    def output(self, change: Change, x: Tensor, frozen: Tensor | None) -> Tensor:
        """The output of the map for each run, ``[run, n, output]``.

        Args:
            change: of :meth:`change`.
            x: ``[run, n, input]``, or ``[1, n, input]`` where it is the same for all runs.
            frozen: what the unmoved map gives for it; ``None`` where the whole matrix moves.
        """
        matrix = change.matrix
        bias = change.bias
        runs = len(x)
        if bias is not None:
            runs = len(bias)
        if matrix is not None:
            runs = len(matrix)
            matrix = matrix.to(x.dtype)
        if change.is_whole:
            assert matrix is not None
            frozen = _product(x, matrix)
            matrix = None
            unmoved: Any = self.module.bias
            if unmoved is not None:
                frozen = frozen + unmoved
        assert frozen is not None
        if frozen.shape[0] != runs:
            frozen = frozen.expand(runs, -1, -1)
        if matrix is None:
            y = frozen
        else:
            added = _product(_chosen(x, change.inputs), matrix)
            if bias is not None and self.bias_goes_along:
                added = added + bias[:, None].to(added.dtype)
                bias = None
            y = _add(frozen, change.outputs, added)
        if bias is None:
            return y
        return _add(y, change.bias_outputs, bias[:, None])


class Maps:
    """The linear maps of a group, by the name of their module.

    Args:
        maps: by name.
        attentions: of torch, which the maps are parts of, by name.
        origin: w* of each member, ``[member, dim]``.
    """

    def __init__(
        self, maps: dict[str, LinearMap], attentions: dict[str, Attention], origin: Tensor
    ) -> None:
        self.maps = maps
        self.attentions = attentions
        self.origin = origin

    def changes(self, position: Tensor, member: Tensor) -> dict[str, Change]:
        """How each map differs in runs at ``position [run, dim]``."""
        origin = self.origin[member]
        changes = {}
        for name, map in self.maps.items():
            changes[name] = map.change(position, origin, member)
        return changes


def maps_of(group: Group, model: nn.Module) -> Maps | str:
    """Find the linear maps that a group moves weights of, or say why it moves others."""
    parameters = dict(model.named_parameters())
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    maps: dict[str, LinearMap] = {}
    attentions: dict[str, Attention] = {}
    for slot in group.slots:
        if slot.basis is not None:
            return "weights move along directions"
        names = names_of[id(parameters[slot.name])]
        if len(names) > 1:
            return f"{names[0]} is also {names[1]}"
        owner, _, kind = slot.name.rpartition(".")
        module = model.get_submodule(owner)
        if kind.startswith("in_proj_") and isinstance(module, nn.MultiheadAttention):
            attentions[owner] = Attention(module)
            owner = f"{owner}.in_proj"
            kind = kind.removeprefix("in_proj_")
            module = model.get_submodule(owner)
        above = owner.rpartition(".")[0]
        around = model.get_submodule(above)
        if isinstance(around, nn.MultiheadAttention):
            reason = why_not(around)
            if reason:
                return f"the attention {above!r} is not computed map by map: {reason}"
            attentions[above] = Attention(around)
        if kind not in ("weight", "bias") or not _acts_as_linear(module):
            return f"{slot.name} is no weight or bias of a plain linear map"
        if "forward" in vars(module):
            return f"the forward of {owner!r} has been replaced, as offloading does"
        is_transposed = not isinstance(module, nn.Linear | InProjection)
        map = maps.setdefault(owner, LinearMap(module, is_transposed))
        setattr(map, kind, Part.of(slot))
    return Maps(maps, attentions, center(group, parameters))


def _acts_as_linear(module: nn.Module) -> bool:
    """Whether a module gives Wx + b; a subclass may have a forward that gives something else."""
    if isinstance(module, InProjection):
        return True
    if not is_linear(module):
        return False
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return True
    weight = module.weight.detach()
    numbers = torch.linspace(-1, 1, 2 * module.in_features)
    x = numbers.to(weight).view(2, -1)
    with torch.no_grad():
        expected = F.linear(x, weight, module.bias)
        y = module.forward(x)
        return torch.allclose(y, expected, rtol=1e-4, atol=1e-5)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is of a kind that gives Wx + b: ``nn.Linear``, ``Conv1D`` of transformers.

    >>> is_linear(nn.Linear(2, 1)), is_linear(nn.Bilinear(2, 2, 1))
    (True, False)
    """
    if isinstance(module, nn.Linear):
        return True
    # A module can only be of that class if somebody has imported it.
    library: Any = sys.modules.get("transformers.pytorch_utils")
    if library is None or not isinstance(module, library.Conv1D):
        return False
    return type(module).forward is library.Conv1D.forward


def _columns(slot: Slot) -> slice:
    """Where a parameter's weights are in position vectors."""
    return slice(slot.start, slot.stop)


def _touched(column: Tensor, width: int) -> Tensor | None:
    """The columns of each member that hold a weight, if all have equally many but not all."""
    touched = [numbers.unique() for numbers in column]
    counts = {len(numbers) for numbers in touched}
    if len(counts) > 1 or counts == {width}:
        return None
    return torch.stack(touched)


def _of_runs(index: Tensor | None, member: Tensor) -> Tensor | None:
    return None if index is None else index[member]


def _are_equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.equal(first, second)


def _chosen(x: Tensor, inputs: Tensor | None) -> Tensor:
    """The inputs of each run that count, ``[run, n, i]``."""
    if inputs is None:
        return x
    if len(x) == 1:
        return x[0][:, inputs].transpose(0, 1)
    n = x.shape[1]
    index = inputs[:, None].expand(-1, n, -1)
    return x.gather(2, index)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x [run or 1, n, i]`` times ``matrix [run, i, o]``."""
    runs, num_inputs, num_outputs = matrix.shape
    if len(x) > 1 or runs == 1:
        return torch.bmm(x, matrix)
    # One product for all runs, whose inputs are the same.
    side_by_side = matrix.transpose(0, 1).reshape(num_inputs, runs * num_outputs)
    y = F.linear(x[0], side_by_side.T)
    return y.view(-1, runs, num_outputs).transpose(0, 1)


def _add(y: Tensor, outputs: Tensor | None, added: Tensor) -> Tensor:
    """``y [run, n, output]`` with ``added [run, n or 1, o]`` at some outputs."""
    added = added.to(y.dtype)
    if outputs is None:
        return y + added
    n = y.shape[1]
    index = outputs[:, None].expand(-1, n, -1)
    return y.scatter_add(2, index, added.expand(-1, n, -1))
