"""What of a forward pass no moved weight reaches: computed once a minibatch, not once a run.

A forward pass of several runs is watched. A call of a module of which no output leads back to the
weights that move gives each run the same, so that later passes get what it gives on the minibatch
alone, repeated for each run: blocks before the first one that is refined, embeddings, the encoder
before a decoder, LayerNorm and keys in front of a head's queries. Modules keep their places, so
that a model that knows its blocks by number calls each with what belongs to it.
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
"""What a module may give that is replaced."""


class Kept(NamedTuple):
    """What one call of a module got and gave on the minibatch alone."""

    values: list[Any]
    """Tensors and plain values, flattened."""
    structure: TreeSpec
    first_input: Tensor | None
    """Of a linear map: what it multiplies."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in it."""
        tensors = [value for value in self.values if isinstance(value, Tensor)]
        if self.first_input is not None:
            tensors.append(self.first_input)
        return tensors

    def repeated(self, runs: int, has_rows: Sequence[bool]) -> Any:
        """The same for several runs, one after the other, in memory of its own."""
        values = []
        for value, repeat in zip(self.values, has_rows, strict=True):
            if isinstance(value, Tensor):
                if repeat:
                    other_axes = [1] * (value.dim() - 1)
                    value = value.repeat(runs, *other_axes)
                else:
                    # A later module may write into what it is given.
                    value = value.clone()
            values.append(value)
        return tree_unflatten(values, self.structure)


class Seen(NamedTuple):
    """One call of a module, in a pass of several runs."""

    name: str
    parent: int
    """Which call it was made in; −1: in none."""
    moves: bool
    """Whether what it gives depends on the weights that move."""
    input_moves: bool
    """Whether its first argument does."""
    input_shape: tuple[int, ...]
    shapes: list[tuple[int, ...] | None]
    """Of the tensors that it gives; ``None`` for plain values."""


@contextmanager
def replaced(model: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """Let modules of a private copy of a model do something else, by name."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for name, forward in forwards.items():
            module = model.get_submodule(name)
            before.append((module, vars(module).get("forward")))
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before:
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own


class Watch:
    """Watches a pass of several runs: which calls depend on the weights that move."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Seen] = []
        self.within: list[int] = [-1]

    def forwards(self, instead: Mapping[str, Forward]) -> dict[str, Forward]:
        """The forward of each module, watched.

        Args:
            instead: of moved modules, what they do instead.
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
    """Keeps what some modules give on a minibatch alone, call by call."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.names = names
        self.kept: list[list[Kept]] = [[] for _ in names]
        self.versions: list[list[int]] = [[] for _ in names]

    def forwards(self) -> dict[str, Forward]:
        """The forwards of these modules, that keep what they give."""
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
        """Whether nothing has written into what was kept."""
        versions = []
        for kept in self.kept[number]:
            versions += [tensor._version for tensor in kept.tensors]
        return versions == self.versions[number]


class Unmoved(NamedTuple):
    """The calls that need not be made for each run."""

    modules: dict[str, list[list[bool]]]
    """By module: for each of its calls which of the values that it gives have a row axis."""
    maps: frozenset[str]
    """Moved maps whose input is the same for all runs, in the one call of each."""

    @property
    def names(self) -> list[str]:
        """All modules of which something is kept."""
        return [*self.modules, *sorted(self.maps)]


def candidates(calls: Sequence[Seen], moved: Sequence[str]) -> tuple[list[str], list[str]]:
    """Modules that give each run the same, and moved maps that get the same, by name."""
    of_module: dict[str, list[Seen]] = {}
    for call in calls:
        of_module.setdefault(call.name, []).append(call)
    same = []
    for name, own in of_module.items():
        gives_what_moves = any(call.moves for call in own)
        if name not in moved and not gives_what_moves:
            same.append(name)
    maps = []
    for name in moved:
        own = of_module.get(name, [])
        if len(own) == 1 and not own[0].input_moves:
            maps.append(name)
    return same, maps


def unmoved(calls: Sequence[Seen], moved: Sequence[str], keeper: Keeper, runs: int) -> Unmoved:
    """Choose what to keep: of nested modules the outermost.

    Args:
        calls: of a pass of several runs.
        moved: modules whose own weights move.
        keeper: of the candidates, after a pass over the same minibatch alone.
        runs: how many there were.
    """
    same, maps = candidates(calls, moved)
    kept = {}
    for number, name in enumerate(keeper.names):
        if keeper.untouched(number):
            kept[name] = keeper.kept[number]
    has_rows: dict[str, list[list[bool]]] = {}
    for name in same:
        own = [call for call in calls if call.name == name]
        flags = _with_rows(own, kept.get(name, []), runs)
        if flags is not None:
            has_rows[name] = flags
    outermost = dict(has_rows)
    for name in _covered(calls, has_rows):
        outermost.pop(name, None)
    shared = []
    for name in maps:
        (call,) = (call for call in calls if call.name == name)
        alone = kept.get(name, [])
        if len(alone) != 1:
            continue
        shape_alone = _shape(alone[0].first_input)
        if _repeats(call.input_shape, shape_alone, runs):
            shared.append(name)
    return Unmoved(outermost, frozenset(shared))


def _with_rows(own: list[Seen], alone: list[Kept], runs: int) -> list[list[bool]] | None:
    """For each call, which values have a row axis; ``None`` where it cannot be told."""
    if len(own) != len(alone):
        return None
    flags = []
    for call, kept in zip(own, alone, strict=True):
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
    inside: list[bool] = []
    for call in calls:
        is_inside = False
        if call.parent >= 0:
            parent = calls[call.parent]
            is_inside = inside[call.parent] or parent.name in chosen
        inside.append(is_inside)
        if is_inside:
            covered.add(call.name)
    return covered


def _repeats(shape: tuple[int, ...] | None, single: tuple[int, ...], runs: int) -> bool:
    """Whether a shape is that of one run, but for ``runs`` times the rows."""
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
