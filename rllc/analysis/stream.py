"""How the attentions of any model read and write the residual stream.

An attention reads the stream through a norm, and the output of its o is added to the stream. No
common setting of models says which norm, and with which factor. So the model is run on a small
batch, and the inputs of its maps are compared with the outputs of its norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rllc.anatomy import Anatomy, Attention, anatomy, inputs
from rllc.anatomy.attention import Letter
from rllc.anatomy.trial import first_tensor
from rllc.engine.modes import in_mode, one_arithmetic
from rllc.errors import InputError

_SAME = 1e-3
"""Relative to the largest number: rounding in float32 is 1000 times smaller."""


LETTERS: tuple[Letter, ...] = ("q", "k", "v", "o")


class Place(NamedTuple):
    """Where one attention reads the residual stream and writes to it.

    Args:
        attention: of the anatomy.
        norm: what it reads the stream through; ``None``: it reads the stream itself.
        queries: the module of its queries; of its keys and values likewise, perhaps the same one.
        keys: see queries.
        values: see queries.
        writes: the module of o.
        branch_norm: what normalises the output of o before it is added; mostly ``None``.
        scale: ``[d_model]``: factors of o's output as it is added.
    """

    attention: Attention
    norm: nn.Module | None
    queries: nn.Module
    keys: nn.Module
    values: nn.Module
    writes: nn.Module
    branch_norm: nn.Module | None
    scale: Tensor

    def reader(self, letter: str) -> nn.Module:
        """The module of ``"Q"``, ``"K"`` or ``"V"``."""
        return {"Q": self.queries, "K": self.keys, "V": self.values}[letter]


@torch.no_grad()
def places(model: nn.Module, caller: str) -> tuple[Place, ...]:
    """Where each attention of a model reads and writes.

    Args:
        model: any transformer with one kind of attention whose anatomy is known.
        caller: the function that error messages name.

    Raises:
        InputError: its stream is no sum of what heads write, or its maps are no modules.
    """
    described = anatomy(model)
    _refuse_towers(model, described, caller)
    for attention in described.attentions:
        _paths_of_maps(model, attention, caller)
    with in_mode(model, False), one_arithmetic():
        example = _example(model, caller)
        return tuple(
            _place(model, attention, example, caller) for attention in described.attentions
        )


def _refuse_towers(model: nn.Module, described: Anatomy, caller: str) -> None:
    towers = {attention.tower for attention in described.attentions}
    if len(towers) > 1:
        raise InputError(
            f"{caller}: {type(model).__name__} has several kinds of attention "
            f"({', '.join(sorted(towers))}), which share no one stream; expected a model of one "
            f"stack."
        )


def _example(model: nn.Module, caller: str) -> inputs.Example:
    """A small batch that the model can be run on."""
    problem = None
    for candidate in inputs.examples(model):
        problem = inputs.run(model, candidate)
        if problem is None:
            return candidate
    raise InputError(
        f"{caller}: how {type(model).__name__} reads its residual stream is found by running it, "
        f"and it could not be run ({problem})."
    )


class _Seen(NamedTuple):
    """Inputs and outputs of modules in one run, by path."""

    read: dict[str, Tensor]
    gave: dict[str, Tensor]


def _place(model: nn.Module, attention: Attention, example: inputs.Example, caller: str) -> Place:
    doing = _doing(model, attention, caller)
    paths = _paths_of_maps(model, attention, caller)
    norms = _norms(model, attention.block)
    watched = [*paths.values(), *norms, attention.block]
    seen = _run(model, example, watched)
    stream = seen.gave[attention.block]
    if any(_same(seen.gave[path], stream) for path in norms):
        raise InputError(
            f"{doing}: its residual stream is normalised after each block, so it is no sum of what "
            f"heads write; expected a model that normalises what blocks read."
        )
    norm = _reads_through(seen, norms, paths["q"], attention.block, doing)
    written = seen.gave[paths["o"]]
    branch_norm = None
    for path in norms:
        if _same(seen.read[path], written):
            branch_norm = path
    if branch_norm is None:
        later = [path for path in norms if path != norm]
        scale = _scale(model, attention, example, paths["o"], later, seen, doing)
    else:
        scale = torch.ones(stream.shape[-1], device=stream.device)
    modules = {letter: model.get_submodule(path) for letter, path in paths.items()}
    return Place(
        attention=attention,
        norm=_module_at(model, norm),
        queries=modules["q"],
        keys=modules["k"],
        values=modules["v"],
        writes=modules["o"],
        branch_norm=_module_at(model, branch_norm),
        scale=scale,
    )


def _doing(model: nn.Module, attention: Attention, caller: str) -> str:
    """The beginning of errors about an attention."""
    return f"{caller}: {attention.module!r} of {type(model).__name__}"


def _module_at(model: nn.Module, path: str | None) -> nn.Module | None:
    if path is None:
        return None
    return model.get_submodule(path)


def _paths_of_maps(model: nn.Module, attention: Attention, caller: str) -> dict[Letter, str]:
    """The modules of q, k, v and o, which are hooked."""
    paths: dict[Letter, str] = {}
    for letter in LETTERS:
        weight = attention.map(letter).weight
        path, _, name = weight.rpartition(".")
        if name != "weight":
            raise InputError(
                f"{caller}: {weight!r} of {type(model).__name__} is no module that is called, so "
                f"what it reads and gives cannot be seen; expected maps that are modules, or an "
                f"rllc.models.AttentionOnly."
            )
        paths[letter] = path
    return paths


def _norms(model: nn.Module, block: str) -> list[str]:
    """Paths of the norms in a block."""
    paths = []
    for name, module in model.get_submodule(block).named_modules():
        if name and "norm" in type(module).__name__.lower():
            paths.append(f"{block}.{name}")
    return paths


def _reads_through(seen: _Seen, norms: list[str], q: str, block: str, doing: str) -> str | None:
    """The path of the norm whose output the queries are made of."""
    for path in norms:
        if path in seen.gave and _same(seen.gave[path], seen.read[q]):
            return path
    if _same(seen.read[block], seen.read[q]):
        return None
    raise InputError(
        f"{doing}: what its queries are made of is neither the residual stream nor a norm of it; "
        f"expected a model whose attention reads one of both."
    )


def _scale(
    model: nn.Module,
    attention: Attention,
    example: inputs.Example,
    o: str,
    norms: list[str],
    seen: _Seen,
    doing: str,
) -> Tensor:
    """Find the factors ``[d_model]`` with which the output of o is added to the stream.

    Noise is added to that output. Wherever the sum is read, by a later norm of the block or at its
    end, the change must be the noise times the factors.
    """
    block = attention.block
    output = seen.gave[o]
    stream = torch.Generator().manual_seed(0)
    size = output.abs().max() + 0.1 * seen.gave[block].abs().max()
    noise = torch.randn(output.shape, generator=stream)
    added = size * noise.to(output)
    hook = model.get_submodule(o).register_forward_hook(lambda module, args, out: out + added)
    try:
        with_noise = _run(model, example, [*norms, block])
    finally:
        hook.remove()
    changes = []
    for path in norms:
        if path in seen.read:
            changes.append(with_noise.read[path] - seen.read[path])
    changes.append(with_noise.gave[block] - seen.gave[block])
    for change in changes:
        scale = _factors(change, added)
        if scale is not None:
            return scale
    raise InputError(
        f"{doing}: what its heads write is not added to the residual stream as it is, so no term "
        f"of the stream is one head's."
    )


def _factors(change: Tensor, added: Tensor) -> Tensor | None:
    """The factors ``[d_model]`` of a change that is factors · added; ``None``: it is not."""
    if change.numel() != added.numel():
        return None
    # OPT's norms read positions without the axis of rows.
    change = change.reshape(added.shape)
    products = (change * added).flatten(0, -2).sum(0)
    squares = added.square().flatten(0, -2).sum(0)
    scale = products / squares
    if scale.abs().min() > 0 and _same(scale * added, change):
        return scale
    return None


def _run(model: nn.Module, example: inputs.Example, paths: list[str]) -> _Seen:
    """Run a model, and note the input and output of modules at their first call."""
    seen = _Seen({}, {})
    with ExitStack() as stack:
        for path in dict.fromkeys(paths):

            def note(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                output: Any,
                path: str = path,
            ) -> None:
                if path not in seen.read:
                    values = args or (kwargs["hidden_states"],)
                    seen.read[path] = values[0].detach().clone()
                    seen.gave[path] = first_tensor(output).detach().clone()

            hook = model.get_submodule(path).register_forward_hook(note, with_kwargs=True)
            stack.callback(hook.remove)
        problem = inputs.run(model, example)
    assert problem is None, problem
    return seen


def _same(values: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if values.shape != expected.shape:
        return False
    largest_difference = (values - expected).abs().max()
    return bool(largest_difference <= _SAME * expected.abs().max())


class Linear(NamedTuple):
    """A norm without its division: x ↦ (x − mean) · scale, or x ↦ x · scale."""

    scale: Tensor
    """``[d_model]``."""
    centres: bool

    def folded(self, weight: Tensor) -> Tensor:
        """A map ``[…, d_model, d_head]`` that reads the stream itself."""
        folded = self.scale[:, None] * weight
        if not self.centres:
            return folded
        return folded - folded.mean(-2, keepdim=True)


def linear_part(norm: nn.Module, width: int, doing: str) -> Linear:
    """The linear part of a norm, whatever its class calls it.

    LayerNorm gives (x − mean)/sd · w + b, and an RMS norm x/rms · w. Two inputs tell which, and w.

    Raises:
        InputError: it is neither.
    """
    parameter = next(norm.parameters(), torch.zeros(()))
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(8, width, generator=stream).to(parameter)
    with torch.no_grad():
        bias = norm(torch.zeros_like(x[:1]))
        output = norm(x) - bias
    for centres in (False, True):
        centred = x - x.mean(-1, keepdim=True) if centres else x
        root_mean_square = centred.square().mean(-1, keepdim=True).sqrt()
        unit = centred / root_mean_square
        scale = (output * unit).sum(0) / unit.square().sum(0)
        if _same(scale * unit, output):
            return Linear(scale, centres)
    raise InputError(f"{doing}: {type(norm).__name__} is neither a LayerNorm nor an RMS norm.")


# The matrices of heads.


class Matrices(NamedTuple):
    """``[layer, head, d_model, d_head]``, of o ``[layer, head, d_head, d_model]``."""

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor


def matrices(model: nn.Module, caller: str, *, fold: bool) -> Matrices:
    """The matrices of each head; keys and values are repeated where heads share them.

    Args:
        model: see :func:`places`.
        caller: the function that error messages name.
        fold: put the norms' linear parts into the maps.

    Raises:
        InputError: see :func:`places`, or a norm is not linear up to a division.
    """
    parameters = dict(model.named_parameters())
    layers = []
    for place in places(model, caller):
        doing = _doing(model, place.attention, caller)
        layers.append(_matrices_of(place, parameters, fold, doing))
    return Matrices(*(torch.stack(by_layer) for by_layer in zip(*layers, strict=True)))


def _matrices_of(
    place: Place, parameters: dict[str, nn.Parameter], fold: bool, doing: str
) -> Matrices:
    """The matrices of one layer, ``[head, …]``."""
    W_Q, W_K, W_V, W_O = (_stacked(place.attention, letter, parameters) for letter in LETTERS)
    width = W_O.shape[-1]
    W_O = W_O * place.scale
    if not fold:
        return Matrices(W_Q, W_K, W_V, W_O)
    if place.branch_norm is not None:
        writes = linear_part(place.branch_norm, width, doing)
        W_O = writes.folded(W_O.mT).mT
    if place.norm is None:
        return Matrices(W_Q, W_K, W_V, W_O)
    reads = linear_part(place.norm, width, doing)
    return Matrices(reads.folded(W_Q), reads.folded(W_K), reads.folded(W_V), W_O)


def _stacked(attention: Attention, letter: Letter, parameters: dict[str, nn.Parameter]) -> Tensor:
    """One map, head by head."""
    own = attention.map(letter)
    weight = parameters[own.weight].detach()
    heads = []
    for head in range(attention.num_heads):
        number = attention.kv_head(head) if letter in ("k", "v") else head
        part = weight[own.slices(number)[own.weight]]
        heads.append(part.movedim(own.axis, 0 if letter == "o" else -1))
    return torch.stack(heads)


# Runs in which one input is changed.


@contextmanager
def reading(place: Place, letter: str, head: int, given: Tensor, z: Tensor) -> Iterator[None]:
    """Let one head read something else for its queries, keys or values.

    Args:
        place: its attention.
        letter: ``"Q"``, ``"K"`` or ``"V"``.
        head: its number.
        given: what the map gives for what is read instead, ``[batch, pos, …]``.
        z: what the heads of the attention pass on otherwise, ``[batch, pos, head, d_head]``: heads
            that share the key keep it.
    """
    attention = place.attention
    own = {"Q": attention.q, "K": attention.k, "V": attention.v}[letter]
    number = head if letter == "Q" else attention.kv_head(head)
    start, stop = own.pieces[number]

    def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., start:stop] = given[..., start:stop]
        return changed

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        moved = args[0].unflatten(-1, z.shape[-2:])
        passed_on = z.clone()
        passed_on[..., head, :] = moved[..., head, :]
        return (passed_on.flatten(-2), *args[1:])

    with ExitStack() as stack:
        stack.callback(place.reader(letter).register_forward_hook(replace).remove)
        stack.callback(place.writes.register_forward_pre_hook(keep).remove)
        yield
