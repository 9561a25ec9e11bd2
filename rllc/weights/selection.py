"""Which weights: small frozen values that select parts of a model's parameters, and compose.

A selection is resolved against a model only when it is used, so one value serves every checkpoint
of a run, can be printed, compared, hashed and sent to another process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rllc.anatomy import RowLike, as_rows
from rllc.arguments import names_checked
from rllc.errors import InputError, kind_of, must_be, one_of, shortened
from rllc.weights.description import described
from rllc.weights.indices import Index, frozen, written
from rllc.weights.names import head_name, parts_of_head, written_head
from rllc.weights.resolving import Masks, Rule, anatomy_of, parameters_of, resolve
from rllc.wrappers import unwrapped

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

    def __or__(self, other: "Weights") -> "Weights":
        return Weights(f"{self.name} | {other.name}", ("or", self.rule, other.rule))

    def __and__(self, other: "Weights") -> "Weights":
        return Weights(f"({self.name}) & ({other.name})", ("and", self.rule, other.rule))

    def __invert__(self) -> "Weights":
        return Weights(f"~({self.name})", ("not", self.rule))

    def named(self, name: str) -> "Weights":
        """Return the same selection under another name."""
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
        resolved = resolve(self.rule, model)
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
        """The weights that it takes from ``model``, tensor by tensor, with counts, and if frozen.

        Of heads it says which keys and values are theirs, and what belongs to no head. A notebook
        shows it as a table.

        >>> model = nn.Linear(3, 2).requires_grad_(False)
        >>> everything().describe(model).partition(chr(10))[0]
        'everything: 8 of 8 weights, 8 of them frozen (requires_grad=False)'
        """
        model = unwrapped(model)
        return described(self.name, self.rule, self.masks(model), model)

    def _refuse_immovable(self, model: nn.Module, selected: Masks) -> None:
        """Chains move real numbers. To leave others out without a word would change what it is."""
        candidates = parameters_of(model)
        immovable = [name for name in selected if not candidates[name].is_floating_point()]
        if not immovable:
            return
        kinds = shortened([f"{name!r} ({candidates[name].dtype})" for name in immovable])
        raise InputError(
            f"Weights {self.name!r} take {kinds} of {type(model).__name__}, but only real "
            f"floating-point weights can move. Leave them out, as in rllc.everything() & "
            f"~rllc.parameters({immovable[0]!r}), or give the module a real parameter "
            f"(torch.view_as_real for complex ones)."
        )


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
    """The weights by default: :func:`trainable` where only a part of them is frozen.

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
        tower, layer, head = parts_of_head(name)
    if type(layer) is not int or type(head) is not int or layer < 0 or head < 0:
        raise InputError(
            f"head({kind_of(layer)}, {kind_of(head)}): expected a layer and a head from 0 on, as "
            f"in head(1, 6) or head('1:6')."
        )
    must_be("head", "kv", kv, one_of(kv, ("shared", "own")), "'shared' or 'own'")
    rule = ("head", layer, head, tower, kv, as_rows(anatomy))
    return Weights(written_head(tower, layer, head), rule)


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
    all_heads = anatomy_of(model, rows)
    if by == "head":
        return [head(name, kv=kv, anatomy=rows or None) for name in all_heads.heads]
    must_be("heads", "kv", kv, kv == "shared", "'shared' with by='kv', which takes whole groups")
    groups = []
    for attention in all_heads.attentions:
        for number in range(attention.num_kv_heads):
            rule = ("group", attention.layer, number, attention.tower, rows)
            name = f"{attention.name}:kv{number}"
            groups.append(Weights(name, rule))
    return groups


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
    return Weights(pattern + written(index), ("parameters", pattern, frozen(index)))


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
