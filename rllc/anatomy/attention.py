"""Anatomies: for each attention of one model, which numbers belong to which head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rllc.tables import AsTable, Table

Letter = Literal["q", "k", "v", "o"]

INPUTS: tuple[Letter, ...] = ("q", "k", "v")
"""The maps that a head reads with; ``o`` is what it writes with."""

Piece = tuple[int, int]
"""Where a head begins and ends along an axis of a tensor."""


@dataclass(frozen=True)
class Map:
    """One of the four linear maps of an attention, and each head's slice of it.

    Args:
        weight: the parameter's name.
        bias: its bias; ``None``: there is none, or it belongs to no head.
        axis: of the weight, along which the heads lie. In a bias it is the first.
        pieces: ``[head]``, or one for each key-value head.
        pieces_of_bias: the same, in the bias.
    """

    weight: str
    bias: str | None
    axis: int
    pieces: tuple[Piece, ...]
    pieces_of_bias: tuple[Piece, ...]

    def slices(self, number: int) -> dict[str, tuple[slice, ...]]:
        """One head's part of the weight and of the bias, as indices.

        >>> Map("q.weight", "q.bias", 1, ((0, 4), (4, 8)), ((0, 4), (4, 8))).slices(1)
        {'q.weight': (slice(None, None, None), slice(4, 8, None)), 'q.bias': (slice(4, 8, None),)}
        """
        start, stop = self.pieces[number]
        axes_before = (slice(None),) * self.axis
        index = {self.weight: (*axes_before, slice(start, stop))}
        if self.bias is not None:
            start, stop = self.pieces_of_bias[number]
            index[self.bias] = (slice(start, stop),)
        return index

    def written(self, number: int) -> str:
        """One head's part of the weight, as one would type it."""
        start, stop = self.pieces[number]
        axes_before = ":, " * self.axis
        return f"{self.weight}[{axes_before}{start}:{stop}]"


@dataclass(frozen=True)
class Attention:
    """One attention of a model: its heads and where they are.

    Args:
        tower: what the names of its heads begin with; ``""`` where a model has one kind.
        layer: its number.
        module: its path in the model.
        block: path of the block that it is part of.
        num_heads: how many heads.
        num_kv_heads: how many heads of keys and values; heads share them in order.
        d_head: numbers that a head passes on at a position.
        q: the map of queries.
        k: of keys.
        v: of values.
        o: of what the heads pass on.
        mixed: of q, k and v, those that are normalised over all heads together.
        rest: parameters of the module that belong to no head.
        note: what else is to be said of its heads.
    """

    tower: str
    layer: int
    module: str
    block: str
    num_heads: int
    num_kv_heads: int
    d_head: int
    q: Map
    k: Map
    v: Map
    o: Map
    mixed: tuple[str, ...]
    rest: tuple[str, ...]
    note: str

    @property
    def name(self) -> str:
        """``"1"``, or ``"decoder.cross.1"``: heads are named by it and their number."""
        if not self.tower:
            return str(self.layer)
        return f"{self.tower}.{self.layer}"

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of its heads."""
        return tuple(f"{self.name}:{head}" for head in range(self.num_heads))

    def map(self, letter: Letter) -> Map:
        """The map of queries, keys, values or outputs."""
        maps: dict[str, Map] = {"q": self.q, "k": self.k, "v": self.v, "o": self.o}
        return maps[letter]

    def kv_head(self, head: int) -> int:
        """The key-value head that a head uses."""
        return head * self.num_kv_heads // self.num_heads

    def heads_of(self, letter: Letter, number: int) -> tuple[int, ...]:
        """The heads that use one slice of a map: several, where they share keys and values."""
        if letter in ("q", "o"):
            return (number,)
        heads = range(self.num_heads)
        return tuple(head for head in heads if self.kv_head(head) == number)

    def masks(
        self, heads: Iterable[int], kv_heads: Iterable[int], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Boolean masks of some heads' slices of q and o, and some key-value heads' of k and v."""
        heads = tuple(heads)
        kv_heads = tuple(kv_heads)
        numbers = {"q": heads, "k": kv_heads, "v": kv_heads, "o": heads}
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for letter in ("q", "k", "v", "o"):
            own = self.map(letter)
            for number in numbers[letter]:
                for name, index in own.slices(number).items():
                    masks = weights if name == own.weight else biases
                    if name not in masks:
                        shape = parameters[name].shape
                        masks[name] = torch.zeros(shape, dtype=torch.bool)
                    masks[name][index] = True
        return weights | biases


@dataclass(frozen=True)
class Anatomy(AsTable):
    """Where a model keeps its heads; ``print`` it.

    Args:
        kind: ``config.model_type``, or what the model was recognised by.
        attentions: each attention, tower by tower and layer by layer.
        blocks: paths of the blocks that have one, in order.
        norms: paths of the norms after the last block, one a tower.
        unembedding: path of the map to logits; ``None``: there is none.
    """

    kind: str
    attentions: tuple[Attention, ...]
    blocks: tuple[str, ...]
    norms: tuple[str, ...]
    unembedding: str | None

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads."""
        return tuple(name for attention in self.attentions for name in attention.heads)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of all groups of heads that share keys and values: ``"0:kv1"``."""
        names = []
        for attention in self.attentions:
            names += [f"{attention.name}:kv{n}" for n in range(attention.num_kv_heads)]
        return tuple(names)

    def find(self, tower: str, layer: int) -> Attention | None:
        """The attention of one layer; ``None``: there is none."""
        for attention in self.attentions:
            if (attention.tower, attention.layer) == (tower, layer):
                return attention
        return None

    @property
    def _table(self) -> Table:
        lines: list[tuple[str, ...]] = [("layer", "heads", "kv", "d_head", "q", "k", "v", "o")]
        for attention in self.attentions:
            sizes = (attention.num_heads, attention.num_kv_heads, attention.d_head)
            maps = (attention.q, attention.k, attention.v, attention.o)
            names = [each.written(0) for each in maps]
            lines.append((attention.name, *map(str, sizes), *names))
        title = f"Anatomy ({self.kind}), slices of each layer's first head"
        return Table(title, lines, left=(0, 4, 5, 6, 7))
