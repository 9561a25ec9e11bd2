"""The error for a model of an unknown type: the attention that it seems to have, as a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rllc.anatomy.guess import Guess, guesses, matrices
from rllc.anatomy.inputs import Example
from rllc.anatomy.rows import Rows
from rllc.errors import InputError

_MOST = 6
"""Attention modules that are shown."""


def no_row(model: nn.Module, kind: str, given: Rows, example: Example | None) -> InputError:
    """The error; its last lines are a row that can be pasted.

    A row that was guessed is verified by running the model. Where that succeeds the error says so;
    where it does not, what is to be filled in or changed.
    """
    name = type(model).__name__
    candidates = guesses(model, kind, example)
    if not candidates:
        return InputError(
            f"heads({name}): expected attention, but no module of it looks like one: none has "
            f"'attn' or 'attention' in its class or name, nor parameters named like "
            f"'blocks.0.attn.W_Q'. Say where it is with anatomy=rllc.AttentionRow(…), or select "
            f"weights with rllc.parameters(name, index=…)."
        )
    problem = f"there is no row for models of type {kind!r}"
    if given:
        paths = ", ".join(repr(row.at) for row in given)
        problem = f"no module of it is at {paths}"
    return InputError(
        f"heads({name}): {problem}. It has attention modules at\n{_listing(candidates)}\n"
        f"{_advice(candidates)}\nrllc.heads(model, anatomy=row)"
    )


def _listing(listed: Sequence[Guess]) -> str:
    """The attention modules and the matrices that are in each."""
    lines = []
    for guess in listed[:_MOST]:
        lines.append(f"  {guess.path}: {type(guess.module).__name__}")
        for name, shape in matrices(guess.module):
            lines.append(f"    {name} {shape}")
    if len(listed) > _MOST:
        lines.append(f"  … and {len(listed) - _MOST} more")
    return "\n".join(lines)


def _advice(listed: Sequence[Guess]) -> str:
    """The rows that can be pasted, or what they lack."""
    verified = [guess for guess in listed if not guess.problem]
    others = [guess for guess in listed if guess.problem]
    lines = [f"    {guess.written}," for guess in verified]
    if verified:
        intro = "This row was guessed from names, and verified by running the model:"
        lines += [f"    # {guess.written}: {_first_sentence(guess)}" for guess in others]
    else:
        intro = (
            "Say which tensors are its maps of queries, keys and values and its output, and how "
            "many heads there are; the row is then verified by running the model. As guessed, "
            f"{_first_sentence(others[0])}:"
        )
        lines = [f"    {guess.written}," for guess in others]
    rows = "\n".join(lines)
    return f"{intro}\nrow = [\n{rows}\n]"


def _first_sentence(guess: Guess) -> str:
    """Why a guess is not to be used as it is."""
    return guess.problem.split(". Look at")[0].rstrip(".")
