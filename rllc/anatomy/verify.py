"""Hold an anatomy against the model: move a head's slices, and see what its heads pass on.

A head passes on what o reads, z = softmax(q kᵀ) v. Each attention is called again with the
arguments of a run of the model, with random weights and random hidden states in the place of its
own: what a slice belongs to does not depend on the weights, and a model may have zeros. So nothing
of the model changes. Slices are moved by a factor of −2 (by −1 where a norm over all heads would
let any other factor move them all), and then

- z of the heads that use the slice changes, in each of its numbers, and no other head's;
- z of a moved v is z times that factor or its sign, since it is linear in v;
- a query that is moved at one position changes z there only, and a key at other positions too;
- one half of a slice of queries or keys changes the other half of z of each head that uses it, and
  one half of a slice of values does not, so that a head is not two heads, nor a group two groups;
- multiplying a head's slice of o, by zero or another factor, gives what multiplying its slice of z
  gives.

Maps that are parameters and not modules cannot be moved at one position. Where nothing is called
on z, it is judged through o: with the slices of o of all other heads zeroed, moving a head's slices
changes the output; with its own zeroed, it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes

from rllc.anatomy.attention import INPUTS, Anatomy, Attention, Letter, Map
from rllc.anatomy.inputs import Example
from rllc.anatomy.trial import Changes, Trial, calls_of, first_tensor, trial_of
from rllc.engine.modes import in_mode, one_arithmetic, seeded, undisturbed
from rllc.errors import InputError, first_line

_SAME = 1e-4
"""Relative to the largest number: rounding in float32 is 100 times smaller, and what a move of a
random slice changes is 100 times larger."""


@torch.no_grad()
def verify(model: nn.Module, anatomy: Anatomy, example: Example | None = None) -> None:
    """Check every head of a model; see the module.

    Args:
        model: nothing of it changes: no weight, gradient, mode or random state.
        anatomy: what is checked.
        example: what to call the model with, where it cannot be guessed.

    Raises:
        InputError: a slice is not what the anatomy says, or the model cannot be run.
    """
    _refuse_elsewhere(model)
    device = next(model.parameters()).device
    with (
        _disable_current_modes(),  # so that FLOPs that are counted are those of the caller
        undisturbed(model),
        one_arithmetic(),
        in_mode(model, False),
        seeded(0, device),
    ):
        calls = calls_of(model, anatomy, example)
        for attention in anatomy.attentions:
            trial = trial_of(model, anatomy, attention, calls.get(attention.module))
            try:
                _check(trial)
            except InputError:
                raise
            except Exception as error:  # whatever an attention raises that is called again
                raise InputError(
                    f"{trial.doing}: its slices cannot be verified, as calling it again with other "
                    f"weights raised {type(error).__name__}: {first_line(error)} Attention must "
                    f"run in float32 for that; try attn_implementation='sdpa' or 'eager'."
                ) from error


def _refuse_elsewhere(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                f"anatomy({type(model).__name__}): {name!r} is on the meta device, as weights are "
                f"that were not loaded or are offloaded; a head is verified by running the model, "
                f"so load it whole."
            )


# The checks.


def _check(trial: Trial) -> None:
    read = trial.read_by_o({})
    if read is None:
        _check_through_o(trial)
        return
    base = trial.apart(read)
    for letter in INPUTS:
        _check_slices(trial, letter, base)
    _check_order(trial)
    _check_whole_heads(trial, base)
    _check_o(trial)


def _factor(attention: Attention, letter: Letter) -> float:
    """The factor by which slices are multiplied; a norm over all heads lets only a sign pass."""
    if letter in attention.mixed:
        return -1.0
    return -2.0


def _sets(number: int) -> list[tuple[int, ...]]:
    """Sets of slices: of any two, one set has the first and not the second.

    >>> _sets(5)[:2]
    [(1, 3), (0, 2, 4)]
    """
    if number < 5:
        return [(n,) for n in range(number)]
    sets = []
    num_bits = (number - 1).bit_length()
    for bit in range(num_bits):
        with_bit = [n for n in range(number) if n >> bit & 1]
        without_bit = [n for n in range(number) if not n >> bit & 1]
        sets.append(tuple(with_bit))
        sets.append(tuple(without_bit))
    return sets


def _users(attention: Attention, letter: Letter, numbers: Sequence[int]) -> frozenset[int]:
    """The heads that use some slices of a map."""
    users: set[int] = set()
    for number in numbers:
        users.update(attention.heads_of(letter, number))
    return frozenset(users)


def _changed(moved: Tensor, base: Tensor) -> Tensor:
    """Which numbers of z change at some place: ``[head, d_head]``."""
    largest_change = (moved - base).abs().amax(0)
    size = base.abs().max()
    return largest_change > _SAME * size


def _same(left: Tensor, right: Tensor, base: Tensor) -> bool:
    """Whether two parts of z are equal, by the size of the whole."""
    difference = (left - right).abs().max()
    size = base.abs().max()
    return bool(difference <= 10 * _SAME * size)


class _Problem(NamedTuple):
    """Heads that moving slices should change and does not, or the other way round."""

    unchanged: list[int]
    """Heads that should change and do not."""
    changed: list[int]
    """Heads that change and should not."""


def _check_slices(trial: Trial, letter: Letter, base: Tensor) -> None:
    """Each slice moves what its own heads pass on, and no other head's."""
    attention = trial.attention
    num_slices = len(attention.map(letter).pieces)
    for numbers in _sets(num_slices):
        problem = _problem(trial, letter, numbers, base)
        if problem is not None:
            _blame(trial, letter, numbers, base)
    if letter in attention.mixed and num_slices > 1:
        _check_mixed(trial, letter, base)


def _check_mixed(trial: Trial, letter: Letter, base: Tensor) -> None:
    """Check maps that are normalised over all heads: scaling one slice changes every head."""
    changes = trial.scaled(letter, [0], 3.0)
    changed = _changed(trial.passed_on(changes), base)
    does_change = changed.any(1)
    unchanged = (~does_change).nonzero()[:, 0].tolist()
    if unchanged:
        _refuse_mixed(trial, letter, unchanged)


def _problem(trial: Trial, letter: Letter, numbers: Sequence[int], base: Tensor) -> _Problem | None:
    """The problem of some slices of a map, if there is one."""
    attention = trial.attention
    factor = _factor(attention, letter)
    changes = trial.scaled(letter, numbers, factor)
    moved = trial.passed_on(changes)
    changed = _changed(moved, base)
    users = _users(attention, letter, numbers)
    unchanged_users = []
    changed_others = []
    for head in range(attention.num_heads):
        if head not in users and changed[head].any():
            changed_others.append(head)
        if head in users and not changed[head].all():
            unchanged_users.append(head)
    if letter == "v" and not unchanged_users and not changed_others:
        unchanged_users = _not_multiplied(moved, base, users, factor)
    if not unchanged_users and not changed_others:
        return None
    return _Problem(unchanged_users, changed_others)


def _not_multiplied(moved: Tensor, base: Tensor, users: frozenset[int], factor: float) -> list[int]:
    """Heads of which z is not multiplied, as it must be when their v is: z is linear in v."""
    heads = []
    for head in sorted(users):
        z = base[:, head]
        new_z = moved[:, head]
        is_multiplied = _same(new_z, factor * z, base)
        # A norm lets the sign alone pass.
        if not is_multiplied and not _same(new_z, -z, base):
            heads.append(head)
    return heads


def _blame(trial: Trial, letter: Letter, numbers: Sequence[int], base: Tensor) -> None:
    """Find the slice that is wrong, and raise."""
    num_slices = len(trial.attention.map(letter).pieces)
    for number in [*numbers, *range(num_slices)]:
        problem = _problem(trial, letter, [number], base)
        if problem is not None:
            _refuse_slice(trial, letter, number, problem)
    _refuse_slice(trial, letter, numbers[0], _Problem([], []))


def _check_order(trial: Trial) -> None:
    """A query matters at its own position, a key at others."""
    base = trial.read_by_o({})
    for letter, name in (("q", "queries"), ("k", "keys")):
        one_map = trial.attention.q if letter == "q" else trial.attention.k
        moved = _with_one_position_moved(trial, one_map)
        if base is None or moved is None:
            continue
        if base.dim() != 3 or base.shape[1] < 3:
            continue
        elsewhere = _changes_elsewhere(moved, base)
        if elsewhere == (letter == "q"):
            where = "other positions too" if elsewhere else "no other position"
            raise InputError(
                f"{trial.doing}: the row is wrong for this model: {one_map.written(0)} and what "
                f"follows are not {name}, as moving them at one position changes {where}. Look at "
                f"`q` and `k` of the row."
            )


_MOVED = 1
"""The position that is moved: under a causal mask the first has no choice where to look."""


def _changes_elsewhere(moved: Tensor, base: Tensor) -> bool:
    """Whether z changes at another position than the one that was moved."""
    largest_change = (moved - base).abs().amax((0, 2))
    does_change = largest_change > _SAME * base.abs().max()  # [pos]
    does_change[_MOVED] = False
    return bool(does_change.any())


def _with_one_position_moved(trial: Trial, one_map: Map) -> Tensor | None:
    """The input of o when a map's output has another sign at one position."""
    path_and_module = trial.module_of(one_map)
    if path_and_module is None:
        return None
    _, module = path_and_module

    def move(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        moved = output.clone()
        for start, stop in one_map.pieces:
            moved[..., _MOVED, start:stop] *= -1
        return moved

    handle = module.register_forward_hook(move)
    try:
        return trial.read_by_o({})
    finally:
        handle.remove()


def _check_whole_heads(trial: Trial, base: Tensor) -> None:
    """Half of a slice of q or k changes the other half of z, and half of a slice of v does not."""
    for letter in INPUTS:
        one_map = trial.attention.map(letter)
        start, stop = one_map.pieces[0]
        if stop - start < 2 or trial.attention.d_head < 2:
            continue
        for first_half in (True, False):
            wrong = _torn_heads(trial, letter, first_half, base)
            if wrong:
                _refuse_torn(trial, letter, wrong[0])


def _torn_heads(trial: Trial, letter: Letter, first_half: bool, base: Tensor) -> list[int]:
    """Heads whose halves do not depend on a slice as those of one head do."""
    one_map = trial.attention.map(letter)
    changes = _half_moved(trial, one_map, first_half)
    changed = _changed(trial.passed_on(changes), base)
    near, far = (0, -1) if first_half else (-1, 0)
    reaches_far = letter != "v"
    wrong = []
    for head, of_head in enumerate(changed.tolist()):
        if not of_head[near] or of_head[far] != reaches_far:
            wrong.append(head)
    return wrong


def _half_moved(trial: Trial, one_map: Map, first_half: bool) -> dict[str, Tensor]:
    """Half of each slice with another sign."""
    weight = trial.values[one_map.weight].clone()
    axes_before_heads = (slice(None),) * one_map.axis
    for piece in one_map.pieces:
        half = _half(piece, first_half)
        weight[(*axes_before_heads, half)] *= -1
    changed = {one_map.weight: weight}
    if one_map.bias is not None:
        bias = trial.values[one_map.bias].clone()
        for piece in one_map.pieces_of_bias:
            bias[_half(piece, first_half)] *= -1
        changed[one_map.bias] = bias
    return changed


def _half(piece: tuple[int, int], first: bool) -> slice:
    start, stop = piece
    middle = (start + stop) // 2
    if first:
        return slice(start, middle)
    return slice(middle, stop)


# The slices of o.


def _check_o(trial: Trial) -> None:
    """Multiplying a head's slice of o gives what multiplying its slice of z gives."""
    path_and_module = trial.module_of(trial.attention.o)
    read = trial.read_by_o({})
    if path_and_module is None or read is None:
        _check_o_by_output(trial)
        return
    path, module = path_and_module
    written = _Written(trial, path, module, read)
    heads = range(trial.attention.num_heads)
    if not written.differs(heads):
        return
    wrong = [head for head in heads if written.differs([head])]
    head = wrong[0] if wrong else 0
    raise InputError(
        f"{trial.doing}: the row is wrong for this model: multiplying "
        f"{trial.attention.o.written(head)} is not the same as multiplying what "
        f"{_listed(trial.attention, [head])} passes on. Look at `o` and `heads` of the row."
    )


class _Written(NamedTuple):
    """The outputs of the map of o, on its own input and on other numbers."""

    trial: Trial
    path: str
    module: nn.Module
    read: Tensor

    def differs(self, numbers: Sequence[int]) -> bool:
        """Whether it matters which of the two is multiplied, by another factor for each head."""
        one_map = self.trial.attention.o
        weight = self.trial.values[one_map.weight].clone()
        z = self.read.clone()
        for number in numbers:
            factor = number / (number + 1)
            start, stop = one_map.pieces[number]
            index = one_map.slices(number)[one_map.weight]
            weight[index] *= factor
            z[..., start:stop] *= factor
        by_weights = self.given(self.read, {one_map.weight: weight})
        by_z = self.given(z, {})
        difference = (by_weights - by_z).abs().max()
        size = self.given(self.read, {}).abs().max()
        return bool(difference > _SAME * size)

    def given(self, z: Tensor, changes: Changes) -> Tensor:
        """The output of the map on z when some of its weights change."""
        values = {**self.trial.values, **changes}
        inside = f"{self.path}."
        state = {}
        for name, name_in_model in self.trial.names.items():
            if name.startswith(inside):
                state[name.removeprefix(inside)] = values[name_in_model]
        output = functional_call(self.module, state, (z,))
        return first_tensor(output)


def _check_o_by_output(trial: Trial) -> None:
    """Moving a head's queries matters through its slice of o, and through no other."""
    factor = _factor(trial.attention, "q")
    all_heads = frozenset(range(trial.attention.num_heads))
    for numbers in _sets(len(all_heads)):
        other_heads = all_heads - frozenset(numbers)
        if other_heads and _matters(trial, other_heads, "q", numbers, factor):
            _blame_through_o(trial, "q", numbers)


# Through o, where what it reads cannot be seen.


def _check_through_o(trial: Trial) -> None:
    for letter in INPUTS:
        _check_others_through_o(trial, letter)
        _check_own_through_o(trial, letter)
        num_slices = len(trial.attention.map(letter).pieces)
        if letter in trial.attention.mixed and num_slices > 1:
            last = trial.attention.num_heads - 1
            if not _matters(trial, frozenset([last]), letter, [0], 3.0):
                _refuse_mixed(trial, letter, [last])


def _check_others_through_o(trial: Trial, letter: Letter) -> None:
    """Moving slices does not matter when their heads do not write."""
    attention = trial.attention
    factor = _factor(attention, letter)
    all_heads = frozenset(range(attention.num_heads))
    num_slices = len(attention.map(letter).pieces)
    for numbers in _sets(num_slices):
        other_heads = all_heads - _users(attention, letter, numbers)
        if other_heads and _matters(trial, other_heads, letter, numbers, factor):
            _blame_through_o(trial, letter, numbers)


def _check_own_through_o(trial: Trial, letter: Letter) -> None:
    """Moving a head's slice matters when it writes alone."""
    attention = trial.attention
    factor = _factor(attention, letter)
    for head in range(attention.num_heads):
        number = head if letter == "q" else attention.kv_head(head)
        if not _matters(trial, frozenset([head]), letter, [number], factor):
            _refuse_slice(trial, letter, number, _Problem([head], []))


def _matters(
    trial: Trial, heads: frozenset[int], letter: Letter, numbers: Sequence[int], factor: float
) -> bool:
    """Whether moving slices changes the output when only some heads write."""
    changes = trial.scaled(letter, numbers, factor)
    base = trial.output(heads, {})
    moved = trial.output(heads, changes)
    difference = (moved - base).abs().max()
    size = base.abs().max()
    return bool(difference > 0.1 * _SAME * size)


def _blame_through_o(trial: Trial, letter: Letter, numbers: Sequence[int]) -> None:
    """Find the slice that is wrong, and raise."""
    attention = trial.attention
    factor = _factor(attention, letter)
    for number in numbers:
        users = attention.heads_of(letter, number)
        changed_others = []
        for head in range(attention.num_heads):
            if head in users:
                continue
            if _matters(trial, frozenset([head]), letter, [number], factor):
                changed_others.append(head)
        if changed_others:
            _refuse_slice(trial, letter, number, _Problem([], changed_others))
    _refuse_slice(trial, letter, numbers[0], _Problem([], []))


# What went wrong.


def _listed(attention: Attention, heads: Sequence[int]) -> str:
    """Names of heads, behind the word "head" or "heads"."""
    names = [attention.heads[head] for head in heads]
    word = "heads" if len(names) > 1 else "head"
    return f"{word} {', '.join(names)}"


def _refuse_slice(trial: Trial, letter: Letter, number: int, problem: _Problem) -> NoReturn:
    attention = trial.attention
    users = _listed(attention, attention.heads_of(letter, number))
    effects = []
    if problem.changed:
        changed = _listed(attention, problem.changed)
        effects.append(f"changes what is passed on by {changed}")
    if problem.unchanged:
        unchanged = _listed(attention, problem.unchanged)
        effects.append(f"does not change what is passed on by {unchanged} as it must")
    effect = " and ".join(effects) or "changes other heads too"
    raise InputError(
        f"{trial.doing}: the row is wrong for this model: moving "
        f"{attention.map(letter).written(number)}, which is to be the {letter} of {users}, "
        f"{effect}. Look at `{letter}`, `o`, `fused`, `heads`, `kv_heads` and `mixed` of the row."
    )


def _refuse_mixed(trial: Trial, letter: Letter, unchanged: Sequence[int]) -> NoReturn:
    slice_of_first = trial.attention.map(letter).written(0)
    raise InputError(
        f"{trial.doing}: the row says that {letter} is normalised over all heads together "
        f"(`mixed`), but scaling {slice_of_first} leaves {_listed(trial.attention, unchanged)} as "
        f"before; leave {letter!r} out of `mixed`."
    )


def _refuse_torn(trial: Trial, letter: Letter, head: int) -> NoReturn:
    attention = trial.attention
    number = head if letter == "q" else attention.kv_head(head)
    raise InputError(
        f"{trial.doing}: the row is wrong for this model: halves of "
        f"{attention.map(letter).written(number)} are not the {letter} of one head, but of "
        f"several, by what {_listed(attention, [head])} passes on. Look at `heads`, `kv_heads` and "
        f"`fused` of the row."
    )
