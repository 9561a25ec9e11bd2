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
from typing import Any

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
                    f"{trial.what}: its slices cannot be verified, as calling it again with other "
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
    return -1.0 if letter in attention.mixed else -2.0


def _sets(number: int) -> list[tuple[int, ...]]:
    """Sets of slices: of any two, one set has the first and not the second."""
    if number < 5:
        return [(n,) for n in range(number)]
    sets = []
    for bit in range((number - 1).bit_length()):
        sets.append(tuple(n for n in range(number) if n >> bit & 1))
        sets.append(tuple(n for n in range(number) if not n >> bit & 1))
    return sets


def _users(attention: Attention, letter: Letter, numbers: Sequence[int]) -> frozenset[int]:
    """The heads that use some slices of a map."""
    return frozenset(h for number in numbers for h in attention.heads_of(letter, number))


def _changed(moved: Tensor, base: Tensor) -> Tensor:
    """Which numbers of z change at some place: ``[head, d_head]``."""
    return (moved - base).abs().amax(0) > _SAME * base.abs().max()


def _same(left: Tensor, right: Tensor, base: Tensor) -> bool:
    return bool((left - right).abs().max() <= 10 * _SAME * base.abs().max())


def _check_slices(trial: Trial, letter: Letter, base: Tensor) -> None:
    """Each slice moves what its own heads pass on, and no other head's."""
    attention = trial.attention
    number = len(attention.map(letter).pieces)
    for numbers in _sets(number):
        if _problem(trial, letter, numbers, base) is not None:
            _blame(trial, letter, numbers, base)
    if letter in attention.mixed and number > 1:
        moved = trial.passed_on(trial.scaled(letter, [0], 3.0))
        still = [head for head, some in enumerate(_changed(moved, base).any(1)) if not bool(some)]
        if still:
            _refuse_mixed(trial, letter, still)


def _problem(
    trial: Trial, letter: Letter, numbers: Sequence[int], base: Tensor
) -> tuple[list[int], list[int]] | None:
    """Heads that should change and do not, and heads that change and should not."""
    attention = trial.attention
    factor = _factor(attention, letter)
    moved = trial.passed_on(trial.scaled(letter, numbers, factor))
    users = _users(attention, letter, numbers)
    changed = _changed(moved, base)
    still = [head for head in sorted(users) if not bool(changed[head].all())]
    others = [h for h in range(attention.num_heads) if h not in users and bool(changed[h].any())]
    if letter == "v" and not still and not others:
        for head in sorted(users):
            z, new_z = base[:, head], moved[:, head]
            if not (_same(new_z, factor * z, base) or _same(new_z, -z, base)):
                still.append(head)
    return (still, others) if still or others else None


def _blame(trial: Trial, letter: Letter, numbers: Sequence[int], base: Tensor) -> None:
    """Find the slice that is wrong, and raise."""
    for number in [*numbers, *range(len(trial.attention.map(letter).pieces))]:
        problem = _problem(trial, letter, [number], base)
        if problem is not None:
            _refuse_slice(trial, letter, number, *problem)
    _refuse_slice(trial, letter, numbers[0], [], [])


def _check_order(trial: Trial) -> None:
    """A query matters at its own position, a key at others."""
    base = trial.read_by_o({})
    for letter, name in (("q", "queries"), ("k", "keys")):
        own = trial.attention.q if letter == "q" else trial.attention.k
        moved = _with_one_position_moved(trial, own)
        if base is None or moved is None or base.dim() != 3 or base.shape[1] < 3:
            continue
        positions = (moved - base).abs().amax((0, 2)) > _SAME * base.abs().max()
        elsewhere = bool(positions[0]) or bool(positions[_MOVED + 1 :].any())
        if elsewhere == (letter == "q"):
            raise InputError(
                f"{trial.what}: the row is wrong for this model: {own.written(0)} and what follows "
                f"are not {name}, as moving them at one position changes "
                f"{'other positions too' if elsewhere else 'no other position'}. Look at `q` and "
                f"`k` of the row."
            )


_MOVED = 1
"""The position that is moved: under a causal mask the first has no choice where to look."""


def _with_one_position_moved(trial: Trial, own: Map) -> Tensor | None:
    """What o reads when a map's output has another sign at one position."""
    found = trial.module_of(own)
    if found is None:
        return None
    _, module = found

    def move(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        moved = output.clone()
        for start, stop in own.pieces:
            moved[..., _MOVED, start:stop] *= -1
        return moved

    handle = module.register_forward_hook(move)
    try:
        return trial.read_by_o({})
    finally:
        handle.remove()


def _check_whole_heads(trial: Trial, base: Tensor) -> None:
    """Half of a slice of q or k changes the other half of z, and half of a slice of v does not."""
    attention = trial.attention
    for letter in INPUTS:
        own = attention.map(letter)
        start, stop = own.pieces[0]
        if stop - start < 2 or attention.d_head < 2:
            continue
        for first_half, near, far in ((True, 0, -1), (False, -1, 0)):
            changed = _changed(trial.passed_on(_half_moved(trial, own, first_half)), base)
            right = changed[:, near] & (changed[:, far] == (letter != "v"))
            if not bool(right.all()):
                head = int((~right).nonzero()[0])
                number = head if letter == "q" else attention.kv_head(head)
                raise InputError(
                    f"{trial.what}: the row is wrong for this model: halves of "
                    f"{own.written(number)} are not the {letter} of one head, but of several, by "
                    f"what {_listed(attention, [head])} passes on. Look at `heads`, `kv_heads` and "
                    f"`fused` of the row."
                )


def _half_moved(trial: Trial, own: Map, first_half: bool) -> dict[str, Tensor]:
    """Half of each slice with another sign."""
    changed = {own.weight: trial.values[own.weight].clone()}
    before = (slice(None),) * own.axis
    for piece in own.pieces:
        changed[own.weight][(*before, _half(piece, first_half))] *= -1
    if own.bias is not None:
        changed[own.bias] = trial.values[own.bias].clone()
        for piece in own.pieces_of_bias:
            changed[own.bias][_half(piece, first_half)] *= -1
    return changed


def _half(piece: tuple[int, int], first: bool) -> slice:
    start, stop = piece
    middle = (start + stop) // 2
    return slice(start, middle) if first else slice(middle, stop)


def _check_o(trial: Trial) -> None:
    """Multiplying a head's slice of o gives what multiplying its slice of z gives."""
    found = trial.module_of(trial.attention.o)
    read = trial.read_by_o({})
    if found is None or read is None:
        _check_o_by_output(trial)
        return
    path, writes = found
    own = trial.attention.o

    def write(z: Tensor, changes: Changes) -> Tensor:
        values = {**trial.values, **changes}
        state = {}
        for name, name_in_model in trial.names.items():
            if name.startswith(f"{path}."):
                state[name.removeprefix(f"{path}.")] = values[name_in_model]
        return first_tensor(functional_call(writes, state, (z,)))

    def differ(numbers: Sequence[int]) -> bool:
        """Whether it matters which of the two is multiplied, by another factor for each head."""
        weights = {own.weight: trial.values[own.weight].clone()}
        z = read.clone()
        for number in numbers:
            factor = number / (number + 1)
            start, stop = own.pieces[number]
            weights[own.weight][own.slices(number)[own.weight]] *= factor
            z[..., start:stop] *= factor
        difference = (write(read, weights) - write(z, {})).abs().max()
        return bool(difference > _SAME * write(read, {}).abs().max())

    if differ(range(trial.attention.num_heads)):
        wrong = [head for head in range(trial.attention.num_heads) if differ([head])]
        head = wrong[0] if wrong else 0
        raise InputError(
            f"{trial.what}: the row is wrong for this model: multiplying {own.written(head)} is "
            f"not the same as multiplying what {_listed(trial.attention, [head])} passes on. Look "
            f"at `o` and `heads` of the row."
        )


def _check_o_by_output(trial: Trial) -> None:
    """Moving a head's queries matters through its slice of o, and through no other."""
    everyone = frozenset(range(trial.attention.num_heads))
    for numbers in _sets(len(everyone)):
        rest = everyone - frozenset(numbers)
        if rest and _matters(trial, rest, "q", numbers, _factor(trial.attention, "q")):
            _blame_through_o(trial, "q", numbers)


# Through o, where what it reads cannot be seen.


def _check_through_o(trial: Trial) -> None:
    attention = trial.attention
    everyone = frozenset(range(attention.num_heads))
    for letter in INPUTS:
        factor = _factor(attention, letter)
        for numbers in _sets(len(attention.map(letter).pieces)):
            rest = everyone - _users(attention, letter, numbers)
            if rest and _matters(trial, rest, letter, numbers, factor):
                _blame_through_o(trial, letter, numbers)
        for head in range(attention.num_heads):
            number = head if letter == "q" else attention.kv_head(head)
            if not _matters(trial, frozenset([head]), letter, [number], factor):
                _refuse_slice(trial, letter, number, [head], [])
        if letter in attention.mixed and len(attention.map(letter).pieces) > 1:
            last = frozenset([attention.num_heads - 1])
            if not _matters(trial, last, letter, [0], 3.0):
                _refuse_mixed(trial, letter, sorted(last))


def _matters(
    trial: Trial, heads: frozenset[int], letter: Letter, numbers: Sequence[int], factor: float
) -> bool:
    """Whether moving slices changes the output when only some heads write."""
    base = trial.output(heads, {})
    moved = trial.output(heads, trial.scaled(letter, numbers, factor))
    return bool((moved - base).abs().max() > 0.1 * _SAME * base.abs().max())


def _blame_through_o(trial: Trial, letter: Letter, numbers: Sequence[int]) -> None:
    """Find the slice that is wrong, and raise."""
    attention = trial.attention
    factor = _factor(attention, letter)
    for number in numbers:
        users = _users(attention, letter, [number])
        others = []
        for head in range(attention.num_heads):
            if head not in users and _matters(trial, frozenset([head]), letter, [number], factor):
                others.append(head)
        if others:
            _refuse_slice(trial, letter, number, [], others)
    _refuse_slice(trial, letter, numbers[0], [], [])


# What went wrong.


def _listed(attention: Attention, heads: Sequence[int]) -> str:
    names = [attention.heads[head] for head in heads]
    return f"head{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _refuse_slice(
    trial: Trial, letter: Letter, number: int, still: Sequence[int], others: Sequence[int]
) -> None:
    attention = trial.attention
    users = attention.heads_of(letter, number)
    problems = []
    if others:
        problems.append(f"changes what is passed on by {_listed(attention, others)}")
    if still:
        problems.append(
            f"does not change what is passed on by {_listed(attention, still)} as it must"
        )
    does = " and ".join(problems) or "changes other heads too"
    raise InputError(
        f"{trial.what}: the row is wrong for this model: moving "
        f"{attention.map(letter).written(number)}, which is to be the {letter} of "
        f"{_listed(attention, users)}, {does}. Look at `{letter}`, `o`, `fused`, `heads`, "
        f"`kv_heads` and `mixed` of the row."
    )


def _refuse_mixed(trial: Trial, letter: Letter, still: Sequence[int]) -> None:
    raise InputError(
        f"{trial.what}: the row says that {letter} is normalised over all heads together "
        f"(`mixed`), but scaling {trial.attention.map(letter).written(0)} leaves "
        f"{_listed(trial.attention, still)} as before; leave {letter!r} out of `mixed`."
    )
