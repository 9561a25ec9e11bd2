"""Which weights: small frozen values that select parts of a model's parameters, and compose.

A selection is resolved against a model only when it is used, so one value serves every checkpoint
of a run, can be printed, compared, hashed and sent to another process.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rllc.anatomy import Anatomy, Attention, AttentionRow, RowLike, anatomy, as_rows
from rllc.arguments import names_checked
from rllc.errors import InputError, kind_of, must_be, nearest, one_of
from rllc.tables import Shown, Table
from rllc.wrappers import unwrapped

IndexPart = int | slice | list[int]

Index = IndexPart | tuple[IndexPart, ...]
"""Part of a tensor, as in ``tensor[index]``."""

Rule = tuple[Any, ...]
"""How to find weights in a model: what kind of rule it is, then plain values or further rules."""

Masks = dict[str, Tensor]
"""A selection in one model: parameter names to boolean masks of their shapes."""

_HEAD = re.compile(r"(?:[lL]?(\d+)\s*[:.]\s*(\d+)|[lL](\d+)[hH](\d+))$")
_HEAD_OF_TOWER = re.compile(
    r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.(?:[lL]?(\d+)\s*:\s*(\d+)|[lL](\d+)[hH](\d+))$"
)
_BLOCK = re.compile(
    r"(?:^|\.)(?:blocks|h|layers|layer)\.(\d+)\."
    r"|(?:^|\.)(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(?:_reverse)?$"
)
_PARAMETRISED = re.compile(r"(.*\.)?parametrizations\.([^.]+)\.original\d*")
KV = Literal["shared", "own"]
"""Whether a head takes the keys and values that it shares with other heads."""


@dataclass(frozen=True)
class Weights:
    """A named selection over a model's parameters; ``|``, ``&`` and ``~`` make new ones.

    >>> circuit = (head("0:1") | head("1:6")).named("induction circuit")
    >>> circuit.name
    'induction circuit'

    Make one with :func:`everything`, :func:`trainable`, :func:`layer`, :func:`head`,
    :func:`heads`, :func:`parameters` or :func:`masks`.

    Args:
        name: what tables, figures and files call it.
        rule: how to find the weights in a model; a nested tuple of plain values.
    """

    name: str
    rule: Rule

    def __or__(self, other: Weights) -> Weights:
        return Weights(f"{self.name} | {other.name}", ("or", self.rule, other.rule))

    def __and__(self, other: Weights) -> Weights:
        return Weights(f"({self.name}) & ({other.name})", ("and", self.rule, other.rule))

    def __invert__(self) -> Weights:
        return Weights(f"~({self.name})", ("not", self.rule))

    def named(self, name: str) -> Weights:
        """The same selection under another name."""
        return replace(self, name=name)

    def masks(self, model: nn.Module) -> Masks:
        """The selection in ``model``: a boolean mask for each parameter it touches.

        A parameter with several names (tied weights) is there once, under the first of them. What
        wraps the model (``DataParallel``, ``torch.compile``) adds nothing to names.

        Raises:
            InputError: the model has no such parameter, head or layer; a mask has another shape
                than its parameter; nothing is selected, or weights that cannot move.
        """
        model = unwrapped(model)
        resolved = _resolve(self.rule, model)
        selected = {name: mask for name, mask in resolved.items() if bool(mask.any())}
        self._refuse_immovable(model, selected)
        if not selected:
            raise InputError(
                f"Weights {self.name!r} select nothing in {type(model).__name__}; expected at "
                f"least one weight. Type print(weights.describe(model)) to see what a selection "
                f"takes."
            )
        return selected

    def count(self, model: nn.Module) -> int:
        """How many numbers of ``model`` it selects."""
        return sum(int(mask.sum()) for mask in self.masks(model).values())

    def describe(self, model: nn.Module) -> str:
        """What it takes from ``model``, tensor by tensor, with counts, and what of it is frozen.

        Of heads also which keys and values are theirs, and what belongs to no head. A notebook
        shows it as a table.

        >>> model = nn.Linear(3, 2).requires_grad_(False)
        >>> everything().describe(model).partition(chr(10))[0]
        'everything: 8 of 8 weights, 8 of them frozen (requires_grad=False)'
        """
        model = unwrapped(model)
        candidates = _parameters(model)
        notes = _notes(model)
        lines = []
        rows = [("tensor", "shape", "weights", "of", "")]
        num_selected = 0
        num_frozen = 0
        for name, mask in self.masks(model).items():
            count = int(mask.sum())
            num_selected += count
            shape = str(tuple(mask.shape))
            line = f"  {name:<28} {shape:<18} {count:>12,} of {mask.numel():,}"
            note = notes.get(name, "")
            if not candidates[name].requires_grad:
                num_frozen += count
                note = f", frozen{note}"
            lines.append(line + note)
            rows.append((name, shape, f"{count:,}", f"{mask.numel():,}", note.lstrip(", ")))
        num_weights = sum(parameter.numel() for parameter in candidates.values())
        title = f"{self.name}: {num_selected:,} of {num_weights:,} weights"
        if num_frozen:
            title += f", {num_frozen:,} of them frozen (requires_grad=False)"
        on_heads = _notes_on_heads(model, self.rule)
        table = Table(title, rows, left=(0, 1, 4), notes=on_heads)
        return Shown("\n".join([title, *lines, *on_heads]), table.html())

    def _refuse_immovable(self, model: nn.Module, selected: Masks) -> None:
        """Chains move real numbers. Leaving others out without a word would change what it is."""
        candidates = _parameters(model)
        immovable = [name for name in selected if not candidates[name].is_floating_point()]
        if not immovable:
            return
        kinds = ", ".join(f"{name!r} ({candidates[name].dtype})" for name in immovable[:4])
        more = f" and {len(immovable) - 4} more" if len(immovable) > 4 else ""
        raise InputError(
            f"Weights {self.name!r} take {kinds}{more} of {type(model).__name__}, but only real "
            f"floating-point weights can move. Leave them out, as in rllc.everything() & "
            f"~rllc.parameters({immovable[0]!r}), or give the module a real parameter "
            f"(torch.view_as_real for complex ones)."
        )


# How selections are made.


def everything() -> Weights:
    """All parameters of the model, frozen ones too: the plain LLC.

    >>> everything().count(nn.Linear(3, 2))
    8

    ``requires_grad=False`` freezes a weight in training, not here: see :func:`trainable`.
    """
    return Weights("everything", ("parameters", "*", None))


def trainable() -> Weights:
    """The parameters with ``requires_grad=True``: of a model with an adapter, the adapter.

    >>> model = nn.Linear(3, 2)
    >>> _ = model.weight.requires_grad_(False)
    >>> trainable().count(model)
    2
    """
    return Weights("trainable", ("trainable",))


def default_weights(model: nn.Module) -> Weights:
    """What is refined when nothing is said: :func:`trainable` if some are frozen and some are not.

    >>> default_weights(nn.Linear(3, 2)).name
    'everything'
    """
    flags = {parameter.requires_grad for parameter in model.parameters()}
    return trainable() if len(flags) == 2 else everything()


def layer(number: int) -> Weights:
    """All parameters of one block, LayerNorm included.

    A block's parameters have ``blocks.N.``, ``h.N.``, ``layers.N.`` or ``layer.N.`` in their names;
    those of a recurrent layer end in ``_lN`` or ``_lN_reverse``, as torch's do.

    >>> layer(1).name
    'layer 1'
    """
    right = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    must_be("layer", "number", number, right, "a block's number, from 0 on")
    return Weights(f"layer {number}", ("layer", number))


def head(
    layer: int | str, head: int | None = None, *, kv: KV = "shared", anatomy: RowLike = None
) -> Weights:
    """One attention head: its slices of the maps of queries, keys, values and outputs.

    Those are ``W_Q, W_K, W_V, W_O, b_Q, b_K, b_V`` in TransformerLens's names. The bias of the
    outputs, norms of queries and keys and LayerNorm are shared by the heads of a block and are not
    part of it.

    >>> head(1, 6) == head("1:6") == head("L1H6")
    True

    In the paper's model a head is 32,864 numbers. Where a model has several kinds of attention,
    names begin with the kind: ``"vision.1:6"``, ``"decoder.cross.1:6"``.

    Args:
        layer: its number; or the head's name.
        head: its number in the layer.
        kv: what becomes of keys and values that several heads share. ``"shared"``: they are part
            of each of these heads, since none works without them. ``"own"``: of none; a head is
            its queries and outputs.
        anatomy: an :class:`rllc.AttentionRow`, or several, where the model's type has none.

    Raises:
        InputError: the name is not a head's (``"1:6"``, ``"L1H6"`` or two numbers).

    Reference: arXiv 2410.02984, section 2 and its configuration files.
    """
    tower = ""
    if isinstance(layer, str):
        name = head_name(layer) if layer.strip() else None
        if name is None or head is not None:
            raise InputError(
                f"head({layer!r}): expected a head such as '1:6' or 'L1H6', or two numbers: "
                f"head(1, 6)."
            )
        tower, layer, head = _parts(name)
    numbers = (layer, head)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise InputError(
            f"head({kind_of(layer)}, {kind_of(head)}): expected a layer and a head from 0 on, as "
            f"in head(1, 6) or head('1:6')."
        )
    must_be("head", "kv", kv, one_of(kv, ("shared", "own")), "'shared' or 'own'")
    name = f"{tower}.{layer}:{head}" if tower else f"{layer}:{head}"
    return Weights(name, ("head", layer, head, tower, kv, as_rows(anatomy)))


def head_name(written: str) -> str | None:
    """The name ``"1:6"`` of a head written in any accepted way; ``None`` for what is not a head.

    >>> head_name("L1H6"), head_name("decoder.L1H6"), head_name("embed.W_E")
    ('1:6', 'decoder.1:6', None)
    """
    written = written.strip()
    match = _HEAD.match(written)
    if match is not None:
        layer, head = (int(digits) for digits in match.groups() if digits is not None)
        return f"{layer}:{head}"
    match = _HEAD_OF_TOWER.match(written)
    if match is None:
        return None
    layer, head = (int(digits) for digits in match.groups()[1:] if digits is not None)
    return f"{match[1]}.{layer}:{head}"


def heads(
    model: nn.Module,
    *,
    kv: KV = "shared",
    by: Literal["head", "kv"] = "head",
    anatomy: RowLike = None,
) -> list[Weights]:
    """Every attention head of ``model``, layer by layer, as one :func:`head` each.

    >>> [head.name for head in heads(nn.MultiheadAttention(8, 2))]
    ['0:0', '0:1']

    The first call with a model runs it on a few tokens, to verify that the slices are the heads';
    see :func:`rllc.anatomy`.

    Args:
        model: a transformer whose type has a row, or one with TransformerLens's names of
            parameters, or with ``nn.MultiheadAttention``.
        kv: as :func:`head` has it.
        by: ``"kv"`` gives one selection for each group of heads that share keys and values, named
            ``"1:kv0"``: all of them, with what they share.
        anatomy: an :class:`rllc.AttentionRow`, or several, where the model's type has none.

    Raises:
        InputError: the model's type has no row (the message shows one to fill in), or the row is
            wrong for this model.
    """
    must_be("heads", "by", by, one_of(by, ("head", "kv")), "'head' or 'kv'")
    must_be("heads", "kv", kv, one_of(kv, ("shared", "own")), "'shared' or 'own'")
    rows = as_rows(anatomy)
    found = _anatomy(model, rows)
    if by == "head":
        return [head(name, kv=kv, anatomy=rows or None) for name in found.heads]
    must_be("heads", "kv", kv, kv == "shared", "'shared' with by='kv', which takes whole groups")
    groups = []
    for attention in found.attentions:
        for number in range(attention.num_kv_heads):
            rule = ("group", attention.layer, number, attention.tower, rows)
            groups.append(Weights(f"{attention.name}:kv{number}", rule))
    return groups


def _parts(name: str) -> tuple[str, int, int]:
    """Tower, layer and head of a name."""
    before, _, head = name.partition(":")
    tower, _, layer = before.rpartition(".")
    return tower, int(layer), int(head)


@names_checked
def parameters(pattern: str, index: Index | None = None) -> Weights:
    """Parameters whose name matches a glob, or one slice of each.

    A tied parameter can be called by each of its names. The name of a parametrised tensor
    (:mod:`torch.nn.utils.parametrize`) stands for the parameters that it is computed from.

    >>> parameters("blocks.*.attn.W_Q", index=3).name
    'blocks.*.attn.W_Q[3]'

    Args:
        pattern: a parameter's name, ``*`` and ``?`` allowed, as ``model.named_parameters()`` gives
            it.
        index: an integer, a slice, a list of integers such as ``[0, 3, 5]``, or a tuple of these
            with one list at most, as in ``tensor[index]``; ``None`` takes all of the tensor.

    Raises:
        InputError: the index is of something else.
    """
    text = "a name as model.named_parameters() gives it, such as '*.W_Q'"
    must_be("parameters", "pattern", pattern, isinstance(pattern, str) and bool(pattern), text)
    if index is None:
        return Weights(pattern, ("parameters", pattern, None))
    return Weights(pattern + _shown(index), ("parameters", pattern, _frozen(index)))


def masks(selected: Mapping[str, Tensor], name: str = "masks") -> Weights:
    """Any weights at all: a boolean tensor for each parameter, of exactly its shape.

    >>> corner = masks({"weight": torch.tensor([[True, False], [False, False]])})
    >>> corner.count(nn.Linear(2, 2))
    1

    Raises:
        InputError: a mask is not a boolean tensor. A wrong shape or name is an error once the
            selection meets a model.
    """
    expected = "a dict of parameter names and boolean tensors"
    must_be("masks", "selected", selected, isinstance(selected, Mapping), expected)
    must_be("masks", "name", name, isinstance(name, str) and bool(name), "a text")
    frozen = []
    for parameter, mask in selected.items():
        _check_boolean(parameter, mask)
        bits = np.packbits(mask.cpu().numpy()).tobytes()
        frozen.append((parameter, tuple(mask.shape), bits))
    return Weights(name, ("masks", tuple(frozen)))


def _check_boolean(parameter: str, mask: object) -> None:
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return
    got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
    raise InputError(
        f"masks: the mask of {parameter!r} must be a boolean tensor, got {got}; write "
        f"`mask.bool()` if non-zero means selected."
    )


# How selections meet a model: one function for each kind of rule.


def _resolve(rule: Rule, model: nn.Module) -> Masks:
    kind, *arguments = rule
    return _KINDS[kind](model, *arguments)


def _either(model: nn.Module, left: Rule, right: Rule) -> Masks:
    masks = _resolve(left, model)
    for name, mask in _resolve(right, model).items():
        masks[name] = masks[name] | mask if name in masks else mask
    return masks


def _both(model: nn.Module, left: Rule, right: Rule) -> Masks:
    masks = _resolve(left, model)
    others = _resolve(right, model)
    return {name: mask & others[name] for name, mask in masks.items() if name in others}


def _complement(model: nn.Module, rule: Rule) -> Masks:
    excluded = _resolve(rule, model)
    masks = {name: _full(parameter) for name, parameter in _parameters(model).items()}
    for name, mask in excluded.items():
        masks[name] = ~mask
    return masks


def _by_name(model: nn.Module, pattern: str, index: tuple[Any, ...] | None) -> Masks:
    candidates = _parameters(model)
    names = _names(model)
    matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        raise InputError(
            f"parameters({pattern!r}): {type(model).__name__} has none; {nearest(pattern, names)}"
        )
    masks: Masks = {}
    for name in matching:
        if index is not None and name not in candidates and len(names[name]) > 1:
            raise InputError(
                f"parameters({pattern!r}, index=…): {name!r} is computed from "
                f"{', '.join(names[name])}; select a part of one of these."
            )
        for parameter in names[name]:
            values = candidates[parameter]
            masks[parameter] = (
                _full(values) if index is None else _slice(parameter, values, _thawed(index))
            )
    return masks


def _by_requires_grad(model: nn.Module) -> Masks:
    masks = {}
    for name, parameter in _parameters(model).items():
        if parameter.requires_grad:
            masks[name] = _full(parameter)
    if not masks:
        raise InputError(
            f"trainable(): all parameters of {type(model).__name__} are frozen "
            f"(requires_grad=False); choose others, or rllc.everything()."
        )
    return masks


def _by_layer(model: nn.Module, number: int) -> Masks:
    masks_of_layers: dict[int, Masks] = {}
    candidates = _parameters(model)
    for name, meant in _names(model).items():
        match = _BLOCK.search(name)
        if match:
            masks_of_layer = masks_of_layers.setdefault(int(match[1] or match[2]), {})
            masks_of_layer |= {parameter: _full(candidates[parameter]) for parameter in meant}
    if number not in masks_of_layers:
        layers = sorted(masks_of_layers) or "with no known names"
        raise InputError(f"layer({number!r}): {type(model).__name__} has layers {layers}.")
    return masks_of_layers[number]


def _by_head(
    model: nn.Module, layer: int, head: int, tower: str, kv: KV, rows: tuple[AttentionRow, ...]
) -> Masks:
    attention = _attention_of(model, layer, tower, rows)
    if attention is None or head >= attention.num_heads:
        name = f"{tower}.{layer}:{head}" if tower else f"{layer}:{head}"
        raise InputError(
            f"head({name!r}): {type(model).__name__} has no such head; "
            f"{nearest(name, _anatomy(model, rows).heads)}"
        )
    kv_heads = [attention.kv_head(head)]
    if kv == "own" and attention.num_kv_heads < attention.num_heads:
        kv_heads = []
    return attention.masks([head], kv_heads, _parameters(model))


def _by_group(
    model: nn.Module, layer: int, group: int, tower: str, rows: tuple[AttentionRow, ...]
) -> Masks:
    attention = _attention_of(model, layer, tower, rows)
    if attention is None or group >= attention.num_kv_heads:
        name = f"{tower}.{layer}:kv{group}" if tower else f"{layer}:kv{group}"
        raise InputError(
            f"heads(by='kv'): {type(model).__name__} has no group {name!r}; "
            f"{nearest(name, _anatomy(model, rows).groups)}"
        )
    heads = attention.heads_of("k", group)
    return attention.masks(heads, [group], _parameters(model))


def _attention_of(
    model: nn.Module, layer: int, tower: str, rows: tuple[AttentionRow, ...]
) -> Attention | None:
    return _anatomy(model, rows).find(tower, layer)


def _anatomy(model: nn.Module, rows: tuple[AttentionRow, ...]) -> Anatomy:
    return anatomy(model, rows or None)


def _by_mask(model: nn.Module, selected: tuple[tuple[str, tuple[int, ...], bytes], ...]) -> Masks:
    candidates = _parameters(model)
    names = _names(model)
    masks = {}
    for given, shape, bits in selected:
        name, *others = names.get(given, (given,))
        if name not in candidates or others:
            raise InputError(
                f"masks: {type(model).__name__} has no parameter {given!r}; "
                f"{nearest(given, candidates)}"
            )
        expected = tuple(candidates[name].shape)
        if shape != expected:
            raise InputError(
                f"masks: the mask of {name!r} must have the parameter's shape {expected}, got "
                f"{shape}; masks are not broadcast, write mask.expand({expected}) if that is what "
                f"you mean."
            )
        packed = np.frombuffer(bits, dtype=np.uint8)
        flat = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool)
        masks[name] = torch.from_numpy(flat).reshape(shape)
    return masks


_KINDS: dict[str, Callable[..., Masks]] = {
    "or": _either,
    "and": _both,
    "not": _complement,
    "parameters": _by_name,
    "trainable": _by_requires_grad,
    "layer": _by_layer,
    "head": _by_head,
    "group": _by_group,
    "masks": _by_mask,
}


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, under its first name."""
    return dict(model.named_parameters())


def _names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names that weights may be called by, and the parameters that each means.

    A tied parameter has several names. A parametrised tensor is computed from parameters.
    """
    first_names = {id(parameter): name for name, parameter in _parameters(model).items()}
    names: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = (first_names[id(parameter)],)
    for name, meant in list(names.items()):
        match = _PARAMETRISED.fullmatch(name)
        if match:
            tensor = f"{match[1] or ''}{match[2]}"
            names[tensor] = names.get(tensor, ()) + meant
    return names


def _notes(model: nn.Module) -> dict[str, str]:
    """What else a parameter is called."""
    others: dict[str, list[str]] = {}
    for name, meant in _names(model).items():
        for parameter in meant:
            if parameter != name:
                others.setdefault(parameter, []).append(name)
    return {parameter: f", also {', '.join(names)}" for parameter, names in others.items()}


def _notes_on_heads(model: nn.Module, rule: Rule) -> list[str]:
    """What is to be said of the heads in a rule: once for each layer."""
    notes: dict[str, None] = {}
    for kind, *arguments in _rules_of_heads(rule):
        layer, _, tower, *others = arguments
        attention = _attention_of(model, layer, tower, others[-1])
        if attention is None:
            continue
        share = attention.num_heads // attention.num_kv_heads
        if share > 1:
            way = "group" if kind == "group" else others[0]
            notes[f"  layer {attention.name}: {_WAYS[way].format(share)}"] = None
        for letter in attention.mixed:
            notes[
                f"  layer {attention.name}: {letter} is normalised over all heads together, so "
                f"moving one head's moves every head's attention"
            ] = None
        if attention.note:
            notes[f"  layer {attention.name}: {attention.note}"] = None
        if attention.rest:
            shown = ", ".join(attention.rest[:4])
            more = f" and {len(attention.rest) - 4} more" if len(attention.rest) > 4 else ""
            notes[f"  belongs to no head: {shown}{more}"] = None
    return list(notes)


_WAYS = {
    "shared": "each head with the keys and values of its group, which {} heads share",
    "own": "without keys and values, which {} heads share (kv='own')",
    "group": "groups of {} heads, with the keys and values that they share",
}


def _rules_of_heads(rule: Rule) -> list[Rule]:
    """The heads and groups that a rule is made of."""
    kind, *arguments = rule
    if kind in ("head", "group"):
        return [rule]
    if kind in ("or", "and"):
        return [inner for argument in arguments for inner in _rules_of_heads(argument)]
    return []


def _full(parameter: Tensor) -> Tensor:
    return torch.ones(parameter.shape, dtype=torch.bool)


def _slice(name: str, parameter: Tensor, index: Index) -> Tensor:
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    try:
        mask[index] = True
    except IndexError as error:
        raise InputError(
            f"parameters({name!r}, index={_shown(index)}): the tensor has shape "
            f"{tuple(parameter.shape)} ({error})."
        ) from error
    return mask


# Indices as values. Slices cannot be hashed before Python 3.12, so a rule holds their three
# numbers.


def _as_tuple(index: Index) -> tuple[IndexPart, ...]:
    return index if isinstance(index, tuple) else (index,)


def _frozen(index: Index) -> tuple[Any, ...]:
    parts: list[Any] = []
    lists = 0
    for part in _as_tuple(index):
        if isinstance(part, list) and all(type(number) is int for number in part):
            parts.append(("list", *part))
            lists += 1
        elif isinstance(part, slice):
            parts.append(("slice", part.start, part.stop, part.step))
        elif isinstance(part, int) and not isinstance(part, bool):
            parts.append(part)
        else:
            raise InputError(
                f"parameters(index={index!r}): expected integers, slices and a list of integers; "
                f"for a boolean mask use rllc.masks."
            )
    if lists > 1 or ("list",) in parts:
        raise InputError(
            f"parameters(index={index!r}): one list of integers at most, and not an empty one; "
            f"join selections with parameters(…) | parameters(…)."
        )
    return tuple(parts)


def _thawed(index: tuple[Any, ...]) -> Index:
    return tuple(_thawed_part(part) for part in index)


def _thawed_part(part: Any) -> IndexPart:
    if not isinstance(part, tuple):
        return part
    kind, *numbers = part
    return slice(*numbers) if kind == "slice" else numbers


def _shown(index: Index) -> str:
    """The index as it is written behind a tensor: ``[3, 2:5]``."""
    return f"[{', '.join(map(_shown_part, _as_tuple(index)))}]"


def _shown_part(part: IndexPart) -> str:
    if not isinstance(part, slice):
        return str(part)
    start = "" if part.start is None else part.start
    stop = "" if part.stop is None else part.stop
    step = "" if part.step is None else f":{part.step}"
    return f"{start}:{stop}{step}"
