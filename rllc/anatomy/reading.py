"""From rows to slices: find the attention modules of a model, and each head's part of each map."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn

from rllc.anatomy.attention import Anatomy, Attention, Letter, Map, Piece
from rllc.anatomy.rows import AttentionRow, Fused, MapNames, Rows
from rllc.errors import InputError, nearest

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


class _AttentionModule(NamedTuple):
    """One attention module that a row names."""

    row: AttentionRow
    prefix: str
    layer: int
    path: str
    block: str


class _Place(NamedTuple):
    """The tensors of one map: the names in the model, and the axis of what it gives or reads."""

    weight: str
    tensor: Tensor
    bias: str | None
    bias_tensor: Tensor | None
    axis: int


def read(model: nn.Module, rows: Rows, kind: str) -> Anatomy | None:
    """The anatomy that rows give of a model; ``None`` where they find no attention.

    Raises:
        InputError: a module, parameter or setting of a row is missing, or sizes do not agree.
    """
    by_path: dict[str, _AttentionModule] = {}
    for row in rows:
        if not _is_for(model, row):
            continue
        for attention in _modules(model, row):
            taken = by_path.get(attention.path)
            if taken is None or (not _has_maps(model, taken) and _has_maps(model, attention)):
                by_path[attention.path] = attention
    if not by_path:
        return None
    attentions = []
    # Each once, in order.
    blocks: dict[str, None] = {}
    norms: dict[str, None] = {}
    unembedding = None
    for attention in by_path.values():
        attentions.append(_attention(model, attention, kind))
        blocks[attention.block] = None
        norm = _path(model, attention.row.norm, attention.prefix)
        if norm is not None:
            norms[norm] = None
        unembedding = unembedding or _path(model, attention.row.unembedding, attention.prefix)
    return Anatomy(
        kind=kind,
        attentions=tuple(attentions),
        blocks=tuple(blocks),
        norms=tuple(norms),
        unembedding=unembedding or _output_embeddings(model),
    )


def multihead_rows(model: nn.Module, rows: Rows) -> Rows:
    """Rows for each ``nn.MultiheadAttention`` of a model, by the numbers in their paths.

    Those at one path but for the last number are the layers of one tower.
    """
    together, apart = rows
    row_of: dict[tuple[str, bool], AttentionRow] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            is_apart = module.in_proj_weight is None
            row = apart if is_apart else together
            at = _pattern(path)
            row_of[at, is_apart] = replace(row, at=at, tower=tower_of(path))
    all_rows = tuple(row_of.values())
    towers = {row.tower for row in all_rows}
    if len(towers) > 1:
        return all_rows
    return tuple(replace(row, tower="") for row in all_rows)


def bridge_rows(model: nn.Module, mixed: tuple[str, ...]) -> Rows:
    """Rows for the attention of a TransformerLens 4 bridge, whose modules wrap others.

    An attention bridge names its maps q, k, v and o; each wraps the linear map that works. Where
    the model has them in one tensor, the bridge works with copies.

    Args:
        model: the bridge.
        mixed: as the row of the model inside says.
    """
    settings: Any = getattr(model, "cfg", None)
    heads: Any = getattr(settings, "n_heads", None)
    kv_heads: Any = getattr(settings, "n_key_value_heads", None) or heads
    rows: dict[str, AttentionRow] = {}
    for path, module in model.named_modules():
        if not is_bridge(module) or not isinstance(heads, int):
            continue
        maps: Any = _wrapped_maps(module)
        if maps is not None:
            at = _pattern(path)
            rows[at] = AttentionRow(at, **maps, heads=heads, kv_heads=kv_heads, mixed=mixed)
    if len(rows) < 2:
        return tuple(rows.values())
    with_towers = []
    for at, row in rows.items():
        tower = tower_of(at.replace("*", "0"))
        with_towers.append(replace(row, tower=tower))
    return tuple(with_towers)


def _wrapped_maps(bridge: nn.Module) -> MapNames | None:
    """Paths of the linear maps that a bridge's q, k, v and o wrap; ``None``: it lacks some."""
    paths = {id(inner): name for name, inner in bridge.named_modules()}
    paths_of_maps = []
    for letter in ("q", "k", "v", "o"):
        wrapper = getattr(bridge, letter, None)
        wrapped = getattr(wrapper, "original_component", None)
        path = paths.get(id(wrapped))
        if path is None:
            return None
        paths_of_maps.append(path)
    q, k, v, o = paths_of_maps
    return MapNames(q=q, k=k, v=v, o=o)


def is_bridge(module: nn.Module) -> bool:
    """Whether a module is the attention of a TransformerLens 4 bridge."""
    return type(module).__name__.endswith("AttentionBridge")


def _pattern(path: str) -> str:
    """A path with ``*`` for its last number; ``"."`` is the model itself."""
    numbers = list(_NUMBER.finditer(path))
    if not numbers:
        return path or "."
    start, stop = numbers[-1].span()
    return f"{path[:start]}*{path[stop:]}"


def tower_of(path: str) -> str:
    """A path without its last number and its list: heads of several towers are named by it."""
    start, star, end = _pattern(path).partition("*")
    if not star:
        return start
    outer, _, _ = start.rstrip(".").rpartition(".")
    inner = end.lstrip(".")
    if outer and inner:
        return f"{outer}.{inner}"
    return outer or inner


def _is_for(model: nn.Module, row: AttentionRow) -> bool:
    """Whether a model has the settings that a row asks for."""
    config = getattr(model, "config", None)
    return all(getattr(config, name, None) == value for name, value in row.when)


def _modules(model: nn.Module, row: AttentionRow) -> list[_AttentionModule]:
    """The attention modules of a row, by layer."""
    if row.at == ".":
        return [_AttentionModule(row, "", 0, "", "")]
    start, star, end = row.at.partition("*")
    number = r"(\d+)" if star else "()"
    pattern = re.compile(rf"(.*?)({re.escape(start)}{number})({re.escape(end)})")
    by_layer: dict[int, _AttentionModule] = {}
    for path, _ in model.named_modules():
        match = pattern.fullmatch(path)
        if match is None:
            continue
        prefix, in_block, digits, _ = match.groups()
        if prefix and not prefix.endswith("."):
            continue
        layer = int(digits or 0)
        block = prefix + in_block if star else ""
        if layer in by_layer:
            raise InputError(
                f"anatomy({type(model).__name__}): {row.at!r} is both {by_layer[layer].path!r} and "
                f"{path!r}; write more of the path in `at`, and a row for each."
            )
        by_layer[layer] = _AttentionModule(row, prefix, layer, path, block)
    return [by_layer[layer] for layer in sorted(by_layer)]


def _has_maps(model: nn.Module, attention: _AttentionModule) -> bool:
    """Whether a module has what a row names."""
    module = model.get_submodule(attention.path)
    row = attention.row
    names = {name for name, _ in module.named_modules()}
    names |= {name for name, _ in module.named_parameters()}
    for written in (row.q, row.k, row.v, row.o):
        first, *_ = written.split()
        if first not in names:
            return False
    return True


def _attention(model: nn.Module, attention: _AttentionModule, kind: str) -> Attention:
    row = attention.row
    doing = f"anatomy({type(model).__name__}), {kind}, {attention.path or 'the model itself'}"
    module = model.get_submodule(attention.path)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[Letter, _Place] = {
        "q": _place(module, row.q, names, doing, writes=False),
        "k": _place(module, row.k, names, doing, writes=False),
        "v": _place(module, row.v, names, doing, writes=False),
        "o": _place(module, row.o, names, doing, writes=True),
    }
    heads, kv_heads = _counts(model, module, attention, places, doing)
    counts: dict[Letter, int] = {"q": heads, "k": kv_heads, "v": kv_heads, "o": heads}
    maps = {}
    for letter, place in places.items():
        pieces = _pieces(letter, places, counts, row, doing, of_bias=False)
        pieces_of_bias: tuple[Piece, ...] = ()
        if place.bias is not None:
            pieces_of_bias = _pieces(letter, places, counts, row, doing, of_bias=True)
        maps[letter] = Map(place.weight, place.bias, place.axis, pieces, pieces_of_bias)
    writes = places["o"].tensor
    # With an axis of heads a piece is one index, and the head's own numbers are the next axis.
    start, stop = maps["o"].pieces[0]
    return Attention(
        tower=row.tower,
        layer=attention.layer,
        module=attention.path,
        block=attention.block,
        num_heads=heads,
        num_kv_heads=kv_heads,
        d_head=writes.shape[1] if writes.dim() == 3 else stop - start,
        q=maps["q"],
        k=maps["k"],
        v=maps["v"],
        o=maps["o"],
        mixed=row.mixed,
        rest=tuple(_rest(module, names, maps)),
        note=row.note,
    )


def _place(
    module: nn.Module, written: str, names: Mapping[int, str], doing: str, *, writes: bool
) -> _Place:
    """The tensors of a map, which a row names by its module or by its parameters."""
    first, *name_of_bias = written.split()
    modules = dict(module.named_modules())
    if first in modules:
        return _place_of_module(modules[first], first, names, doing, writes=writes)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if first not in parameters:
        candidates = [name for name in (*modules, *parameters) if name]
        raise InputError(
            f"{doing}: the row names {first!r}, and there is no such module or parameter; "
            f"{nearest(first, candidates)}"
        )
    tensor = parameters[first]
    bias = parameters.get(name_of_bias[0]) if name_of_bias else None
    if tensor.dim() not in (2, 3):
        raise InputError(
            f"{doing}: {first!r} has shape {tuple(tensor.shape)}; expected [out, in] or [head, "
            f"d_model, d_head]."
        )
    axis = 0 if tensor.dim() == 3 or not writes else 1
    return _Place(_name(tensor, names), tensor, _bias(bias, names, writes), bias, axis)


def _place_of_module(
    module: nn.Module, name: str, names: Mapping[int, str], doing: str, *, writes: bool
) -> _Place:
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    is_linear = isinstance(module, nn.Linear)
    is_map = is_linear or type(module).__name__ == "Conv1D"
    if not is_map or not _is_matrix(weight):
        raise InputError(
            f"{doing}: {name!r} is {type(module).__name__}; expected an nn.Linear or transformers' "
            f"Conv1D with a weight [out, in] or [in, out] of its own. Quantised, wrapped and "
            f"adapted maps are not read."
        )
    if id(weight) not in names:
        raise InputError(
            f"{doing}: the weight of {name!r} is computed from other parameters "
            f"(torch.nn.utils.parametrize); heads are slices of weights, so select the others with "
            f"rllc.parameters."
        )
    # nn.Linear has [out, in], Conv1D [in, out]. Heads lie along what a map gives; o reads them.
    axis = int(is_linear == writes)
    return _Place(_name(weight, names), weight, _bias(bias, names, writes), bias, axis)


def _is_matrix(weight: object) -> TypeGuard[Tensor]:
    """Whether a weight is ``[out, in]`` in real numbers: quantised ones are not."""
    if not isinstance(weight, Tensor):
        return False
    return weight.dim() == 2 and weight.is_floating_point()


def _name(tensor: Tensor, names: Mapping[int, str]) -> str:
    """A parameter's name in the model."""
    return names[id(tensor)]


def _bias(bias: Tensor | None, names: Mapping[int, str], writes: bool) -> str | None:
    """The bias of q, k or v. That of o is added once for all heads."""
    if bias is None or writes:
        return None
    return names[id(bias)]


def _counts(
    model: nn.Module,
    module: nn.Module,
    attention: _AttentionModule,
    places: Mapping[Letter, _Place],
    doing: str,
) -> tuple[int, int]:
    """How many heads, and how many heads of keys and values."""
    queries, keys = places["q"].tensor, places["k"].tensor
    if queries.dim() == 3 and keys.dim() == 3:
        heads = queries.shape[0]
        kv_heads = keys.shape[0]
    else:
        heads = _setting(model, module, attention, attention.row.heads, doing)
        kv_heads = heads
        if attention.row.kv_heads:
            kv_heads = _setting(model, module, attention, attention.row.kv_heads, doing)
    if heads % kv_heads:
        raise InputError(
            f"{doing}: {heads} heads cannot share {kv_heads} heads of keys and values; expected a "
            f"divisor. Look at `heads` and `kv_heads` of the row."
        )
    return heads, kv_heads


def _setting(
    model: nn.Module, module: nn.Module, attention: _AttentionModule, setting: int | str, doing: str
) -> int:
    """A number, or the setting of that name."""
    if isinstance(setting, int):
        return setting
    config = getattr(model, "config", None)
    if attention.row.config:
        # A tower that is used alone has its settings at the top.
        config = getattr(config, attention.row.config, config)
    for owner in (config, module):
        value = getattr(owner, setting, None)
        if isinstance(value, list | tuple) and len(value) > attention.layer:
            value = value[attention.layer]
        if type(value) is int and value > 0:
            return value
        if value is None and owner is config and hasattr(config, setting):
            # Settings of this name default to the number of heads.
            return _setting(model, module, attention, attention.row.heads, doing)
    raise InputError(
        f"{doing}: neither the configuration nor the module has the setting {setting!r}, a number "
        f"of heads; write the number itself into the row."
    )


def _pieces(
    letter: Letter,
    places: Mapping[Letter, _Place],
    counts: Mapping[Letter, int],
    row: AttentionRow,
    doing: str,
    *,
    of_bias: bool,
) -> tuple[Piece, ...]:
    """Where the heads of one map lie in its tensor, or in its bias."""
    place = places[letter]
    name, size = _extent(place, of_bias)
    number = counts[letter]
    if place.tensor.dim() == 3 and (not of_bias or _has_heads(place.bias_tensor)):
        if size != number:
            raise InputError(f"{doing}: {name} has {size} heads, expected {number}.")
        return tuple((n, n + 1) for n in range(number))
    together = _together(letter, places, of_bias)
    if len(together) < 2:
        unit = _unit(size, number, name, row, doing)
        starts = [n * unit for n in range(number)]
    else:
        total = sum(counts[fused_map] for fused_map in together)
        unit = _unit(size, total, name, row, doing)
        if not row.fused:
            raise InputError(
                f"{doing}: {' and '.join(together)} are all in {name}, and the row does not say "
                f"how; write fused='side by side' or fused='interleaved' into it."
            )
        starts = _starts(letter, together, counts, row.fused)
        starts = [start * unit for start in starts]
    return tuple((start, start + unit) for start in starts)


def _has_heads(bias: Tensor | None) -> bool:
    """Whether a bias has an axis of heads, ``[head, d_head]``."""
    return bias is not None and bias.dim() == 2


def _together(letter: Letter, places: Mapping[Letter, _Place], of_bias: bool) -> list[Letter]:
    """The maps among q, k and v that are in one tensor with a map."""
    if letter not in _READ:
        return []
    name, _ = _extent(places[letter], of_bias)
    together = []
    for candidate in _READ:
        name_of_candidate, _ = _extent(places[candidate], of_bias)
        if name_of_candidate == name:
            together.append(candidate)
    return together


def _starts(
    letter: Letter,
    together: Sequence[Letter],
    counts: Mapping[Letter, int],
    fused: Fused,
) -> list[int]:
    """Where each head of a map begins in a tensor of several maps, in heads."""
    number = counts[letter]
    earlier_maps = together[: together.index(letter)]
    if fused == "side by side":
        num_earlier = sum(counts[earlier] for earlier in earlier_maps)
        return [num_earlier + n for n in range(number)]
    # Interleaved: group after group, its queries, its key, its value.
    num_groups = counts["k"]
    width = sum(counts[fused_map] for fused_map in together) // num_groups
    num_earlier = sum(counts[earlier] // num_groups for earlier in earlier_maps)
    starts: list[int] = []
    for group in range(num_groups):
        first = group * width + num_earlier
        starts += range(first, first + number // num_groups)
    return starts


_READ: tuple[Letter, ...] = ("q", "k", "v")


def _extent(place: _Place, of_bias: bool) -> tuple[str | None, int]:
    """The name of a tensor, and its size along the heads."""
    if not of_bias:
        return place.weight, place.tensor.shape[place.axis]
    if place.bias_tensor is None:
        return place.bias, 0
    return place.bias, place.bias_tensor.shape[0]


def _unit(size: int, number: int, name: str | None, row: AttentionRow, doing: str) -> int:
    """The numbers of one head along an axis."""
    if size % number or not size:
        raise InputError(
            f"{doing}: {name} has {size} numbers along its heads, which are no {number} equal "
            f"parts; look at `heads`, `kv_heads` and `fused` of the row {row.at!r}."
        )
    return size // number


def _rest(module: nn.Module, names: Mapping[int, str], maps: Mapping[Letter, Map]) -> Iterator[str]:
    """Parameters of an attention module of which no head has a part."""
    names_of_maps: set[str | None] = set()
    for one_map in maps.values():
        names_of_maps.update((one_map.weight, one_map.bias))
    for parameter in module.parameters():
        name = names[id(parameter)]
        if name not in names_of_maps:
            yield name


def _path(model: nn.Module, name: str, prefix: str) -> str | None:
    """Where a norm or an unembedding is: beside the blocks, or at the top."""
    if not name:
        return None
    modules: dict[str, Any] = dict(model.named_modules())
    for path in (prefix + name, name):
        if path in modules:
            return path
    return None


def _output_embeddings(model: nn.Module) -> str | None:
    """The path of what transformers takes for the map to logits."""
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if module is embeddings:
            return path
    return None
