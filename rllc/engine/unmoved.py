"""The part of a forward pass that no moved weight reaches, computed once for all runs.

A forward pass of several runs is watched. Where no output of a module's call depends on the weights
that move, the call gives every run the same. Later passes then take what the module gives on the
minibatch alone, repeated for each run. So it is with blocks before the first refined one,
embeddings, the encoder before a decoder, and LayerNorm and keys in front of a head's queries.
Modules keep their places, because a model may call its blocks by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from rllc.engine.linear_maps import is_linear

Forward = Callable[..., Any]

_SIMPLE = (Tensor, type(None), bool, int, float, str)
"""Kinds of values that a module may give if its calls are to be replaced."""


class Kept(NamedTuple):
    """One call of a module on the minibatch alone: what it gave, and what a linear map got."""

    values: list[Any]
    """The tensors and plain values that the module gave, flattened."""
    structure: TreeSpec
    """How they were nested."""
    first_input: Tensor | None
    """The input of a linear map; ``None`` for other modules."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        tensors = [value for value in self.values if isinstance(value, Tensor)]
        if self.first_input is not None:
            tensors.append(self.first_input)
        return tensors

    def repeated(self, runs: int, has_rows: Sequence[bool]) -> Any:
        """The values for several runs, the rows of one run after those of another.

        Args:
            runs: how many.
            has_rows: which of the values have a row axis, which is repeated.
        """
        values = []
        for value, repeat in zip(self.values, has_rows, strict=True):
            if not isinstance(value, Tensor):
                values.append(value)
            elif repeat:
                other_axes = [1] * (value.dim() - 1)
                values.append(value.repeat(runs, *other_axes))
            else:
                # A later module may write into what it is given.
                values.append(value.clone())
        return tree_unflatten(values, self.structure)


class Seen(NamedTuple):
    """One call of a module, in a pass of several runs."""

    name: str
    parent: int
    """The number of the call that made this one; −1: none did."""
    moves: bool
    """Whether an output depends on the weights that move."""
    input_moves: bool
    """Whether the first tensor among the arguments depends on them."""
    input_shape: tuple[int, ...]
    shapes: list[tuple[int, ...] | None]
    """Shapes of the output tensors; ``None`` for plain values."""


@contextmanager
def replaced(model: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """Replace the forwards of modules of a private copy of a model, by name."""
    replaced_forwards: list[tuple[nn.Module, Any]] = []
    try:
        for name, forward in forwards.items():
            module = model.get_submodule(name)
            # Only a module whose forward was replaced before has one among its attributes.
            replaced_forwards.append((module, vars(module).get("forward")))
            vars(module)["forward"] = forward
        yield
    finally:
        for module, previous in replaced_forwards:
            del vars(module)["forward"]
            if previous is not None:
                vars(module)["forward"] = previous


class Watch:
    """Watches a pass of several runs, and notes which calls depend on the weights that move."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Seen] = []
        self.within: list[int] = [-1]
        """Numbers of the calls that have begun and not ended, the innermost last."""

    def forwards(self, instead: Mapping[str, Forward]) -> dict[str, Forward]:
        """The watched forward of each module.

        Args:
            instead: forwards that moved modules have in place of their own.
        """
        watched = {}
        for name, module in self.model.named_modules():
            forward = instead.get(name, module.forward)
            watched[name] = self._watched(name, forward)
        return watched

    def _watched(self, name: str, forward: Forward) -> Forward:
        @wraps(forward, assigned=(), updated=())  # losses look at a model's arguments
        def call(*args: Any, **kwargs: Any) -> Any:
            number = len(self.calls)
            parent = self.within[-1]
            first = first_tensor(args, kwargs)
            seen = Seen(name, parent, True, _moves(first), _shape(first), [])
            self.calls.append(seen)
            self.within.append(number)
            result = forward(*args, **kwargs)
            self.within.pop()
            values, _ = tree_flatten(result)
            can_be_replaced = all(isinstance(value, _SIMPLE) for value in values)
            moves = any(_moves(value) for value in values)
            self.calls[number] = seen._replace(
                moves=moves or not can_be_replaced,
                shapes=[_shape_if_tensor(value) for value in values],
            )
            return result

        return call


class Keeper:
    """Keeps the outputs of modules in a pass over the minibatch alone, call by call."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.names = names
        self.kept: list[list[Kept]] = [[] for _ in names]
        self.versions: list[list[int]] = [[] for _ in names]

    def forwards(self) -> dict[str, Forward]:
        """Forwards of these modules that keep their outputs."""
        forwards = {}
        for number, name in enumerate(self.names):
            module = self.model.get_submodule(name)
            forwards[name] = self._keeping(number, module)
        return forwards

    def _keeping(self, number: int, module: nn.Module) -> Forward:
        forward: Forward = module.forward
        is_map = is_linear(module)

        @wraps(forward, assigned=(), updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            values, structure = tree_flatten(result)
            first = first_tensor(args, kwargs) if is_map else None
            kept = Kept(values, structure, first)
            self.kept[number].append(kept)
            self.versions[number] += [tensor._version for tensor in kept.tensors]
            return result

        return call

    def untouched(self, number: int) -> bool:
        """Whether nothing has written into the tensors that were kept."""
        versions = []
        for kept in self.kept[number]:
            versions += [tensor._version for tensor in kept.tensors]
        return versions == self.versions[number]


class Unmoved(NamedTuple):
    """The calls that need not be made for each run."""

    modules: dict[str, list[list[bool]]]
    """By module, for each of its calls: which output values have a row axis."""
    maps: frozenset[str]
    """Moved maps, called once, whose input is the same for all runs."""

    @property
    def names(self) -> list[str]:
        """All modules of which outputs or inputs are kept."""
        return [*self.modules, *sorted(self.maps)]


def candidates(calls: Sequence[Seen], moved: Sequence[str]) -> tuple[list[str], list[str]]:
    """Modules that give each run the same, and moved maps that get the same, by name."""
    calls_of: dict[str, list[Seen]] = {}
    for call in calls:
        calls_of.setdefault(call.name, []).append(call)
    same_outputs = []
    for name, calls_of_module in calls_of.items():
        is_moved = name in moved or any(call.moves for call in calls_of_module)
        if not is_moved:
            same_outputs.append(name)
    same_inputs = []
    for name in moved:
        calls_of_map = calls_of.get(name, [])
        if len(calls_of_map) == 1 and not calls_of_map[0].input_moves:
            same_inputs.append(name)
    return same_outputs, same_inputs


def unmoved(calls: Sequence[Seen], moved: Sequence[str], keeper: Keeper, runs: int) -> Unmoved:
    """Choose what to keep: of nested modules the outermost.

    Args:
        calls: of a pass of several runs.
        moved: modules whose own weights move.
        keeper: of the candidates, after a pass over the same minibatch alone.
        runs: number of runs in the watched pass.
    """
    same, maps = candidates(calls, moved)
    kept_calls = {}
    for number, name in enumerate(keeper.names):
        if keeper.untouched(number):
            kept_calls[name] = keeper.kept[number]
    has_rows: dict[str, list[list[bool]]] = {}
    for name in same:
        calls_of_module = [call for call in calls if call.name == name]
        flags = _with_rows(calls_of_module, kept_calls.get(name, []), runs)
        if flags is not None:
            has_rows[name] = flags
    outermost = dict(has_rows)
    for name in _covered(calls, has_rows):
        outermost.pop(name, None)
    shared = []
    for name in maps:
        (call,) = (call for call in calls if call.name == name)
        kept_calls_of_map = kept_calls.get(name, [])
        if len(kept_calls_of_map) != 1:
            continue
        shape_of_one_run = _shape(kept_calls_of_map[0].first_input)
        if _repeats(call.input_shape, shape_of_one_run, runs):
            shared.append(name)
    return Unmoved(outermost, frozenset(shared))


def _with_rows(calls: list[Seen], kept_calls: list[Kept], runs: int) -> list[list[bool]] | None:
    """For each call, which values have a row axis; ``None`` if shapes do not show it.

    Args:
        calls: of one module, in a pass of several runs.
        kept_calls: of the same module, in a pass over the minibatch alone.
        runs: number of runs.
    """
    if len(calls) != len(kept_calls):
        return None
    flags = []
    for call, kept in zip(calls, kept_calls, strict=True):
        if len(call.shapes) != len(kept.values):
            return None
        flags_of_call = []
        for shape, value in zip(call.shapes, kept.values, strict=True):
            single = _shape_if_tensor(value)
            repeats = single is not None and _repeats(shape, single, runs)
            if not repeats and shape != single:
                return None
            flags_of_call.append(repeats)
        flags.append(flags_of_call)
    return flags


def _covered(calls: Sequence[Seen], chosen: Mapping[str, object]) -> set[str]:
    """Modules of which a call is made within a call of a chosen one."""
    covered = set()
    is_inside: list[bool] = []  # for each call; a parent comes before its calls
    for call in calls:
        if call.parent < 0:
            is_inside.append(False)
            continue
        parent = calls[call.parent]
        is_inside.append(is_inside[call.parent] or parent.name in chosen)
        if is_inside[-1]:
            covered.add(call.name)
    return covered


def _repeats(shape: tuple[int, ...] | None, single: tuple[int, ...], runs: int) -> bool:
    """Whether a shape is that of a single run with ``runs`` times the rows."""
    if not shape or not single:
        return False
    num_rows, *other_axes = shape
    num_rows_of_single, *other_axes_of_single = single
    return num_rows == runs * num_rows_of_single and other_axes == other_axes_of_single


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first argument that is a tensor, if one is."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    return None


def _moves(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _shape(value: Tensor | None) -> tuple[int, ...]:
    return () if value is None else tuple(value.shape)


def _shape_if_tensor(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
