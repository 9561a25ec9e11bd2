"""Rows for models of unknown types: guessed by names, and held against the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from rllc.anatomy.inputs import Example
from rllc.anatomy.reading import read, tower_of
from rllc.anatomy.rows import AttentionRow, Fused, MapNames
from rllc.anatomy.verify import verify
from rllc.errors import InputError

OPEN = "…"
"""In the place of what cannot be guessed."""

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)

_OUTER = re.compile(r"(layer|block|model)$", re.IGNORECASE)
"""Classes of what holds an attention may be named after it: ``HybridAttentionDecoderLayer``."""

_LIKELY = {
    "q": r"(w_?)?q(_?proj|_?lin|uery)?|to_q|query_proj|queries",
    "k": r"(w_?)?k(_?proj|_?lin|ey)?|to_k|key_proj|keys",
    "v": r"(w_?)?v(_?proj|_?lin|alue)?|to_v|value_proj|values",
    "o": r"(w_?)?o(_?proj|ut|ut_proj|ut_lin|utput)?|dense|c_proj|proj|to_out(\.0)?|output\.dense",
    "qkv": r"w?qkv(_proj)?|c_attn|query_key_value|in_proj(_weight)?|to_qkv",
}
"""Usual names of maps."""

_SETTINGS = ("num_attention_heads", "n_heads", "num_heads", "n_head")

_DEFAULTS = {each.name: each.default for each in fields(AttentionRow)}


@dataclass(frozen=True)
class Guess:
    """A row for the attention modules of one path.

    Args:
        path: of the modules, ``*`` for the number of the block.
        module: the first of them.
        written: the row, as one would type it; it may have open places.
        problem: why it is not to be used as it is; ``""``: it was verified.
    """

    path: str
    module: nn.Module
    written: str
    problem: str


def guesses(model: nn.Module, kind: str, example: Example | None) -> list[Guess]:
    """A row for each path of attention modules, verified where that is possible."""
    listed = []
    has_verified = False
    for path, module in attention_modules(model).items():
        row = _likely_row(model, path, module)
        if row is None:
            written = _with_open_places(model, path, module)
            listed.append(Guess(path, module, written, "names do not show its maps"))
            continue
        if has_verified:
            # Heads of two rows must not have the same names.
            row = replace(row, tower=tower_of(path.replace("*", "0")))
        row, problem = _best_variant(model, kind, module, row, example)
        has_verified = has_verified or not problem
        listed.append(Guess(path, module, written_row(row), problem))
    return listed


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """One module for each path of attention modules; those inside of others are left out."""
    modules: dict[str, nn.Module] = {}
    outer: list[str] = []
    for path, module in model.named_modules():
        if not path or not _looks_like_attention(path, module):
            continue
        if any(path.startswith(f"{before}.") for before in outer):
            continue
        outer.append(path)
        # The first number is mostly that of the block.
        modules.setdefault(_NUMBER.sub("*", path, count=1), module)
    return modules


def _looks_like_attention(path: str, module: nn.Module) -> bool:
    if len(matrices(module)) < 2:
        return False
    if _ATTENTION.search(path.rpartition(".")[2]):
        return True
    kind = type(module).__name__
    return _ATTENTION.search(kind) is not None and _OUTER.search(kind) is None


def matrices(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the matrices inside: those of maps by their modules."""
    named = []
    for name, parameter in module.named_parameters():
        if parameter.dim() in (2, 3):
            named.append((name.removesuffix(".weight"), tuple(parameter.shape)))
    return named


def _likely_row(model: nn.Module, path: str, module: nn.Module) -> AttentionRow | None:
    """A row by the usual names; ``None`` where something has none."""
    maps: Any = _maps(module)
    heads = _setting(model, module)
    if heads is None or OPEN in maps.values():
        return None
    return AttentionRow(path, **maps, heads=heads)


def _with_open_places(model: nn.Module, path: str, module: nn.Module) -> str:
    """A row as text, with what cannot be guessed left open."""
    maps = _maps(module)
    named = ", ".join(f"{letter}={name!r}" for letter, name in maps.items())
    heads = _setting(model, module)
    number = OPEN if heads is None else repr(heads)
    return f"rllc.AttentionRow({path!r}, {named}, heads={number})"


def _maps(module: nn.Module) -> MapNames:
    """The names of q, k, v and o, open where none is usual."""
    names = [name for name, _ in matrices(module)]
    together = _like("qkv", names)
    others = [name for name in names if name != together]
    o = _like("o", others) or OPEN
    if together is not None:
        qkv = _with_bias(together, module)
        return MapNames(q=qkv, k=qkv, v=qkv, o=o)
    q, k, v = (_like(letter, names) or OPEN for letter in ("q", "k", "v"))
    return MapNames(q=q, k=k, v=v, o=o)


def _like(letter: str, names: list[str]) -> str | None:
    for name in names:
        last = name.rpartition(".")[2]
        for written in (name, last):
            if re.fullmatch(_LIKELY[letter], written, re.IGNORECASE):
                return name
    return None


def _with_bias(name: str, module: nn.Module) -> str:
    """The parameters of ``nn.MultiheadAttention`` are no module's, so the bias is named too."""
    bias = name.removesuffix("weight") + "bias"
    has_bias = name.endswith("_weight") and bias in dict(module.named_parameters())
    return f"{name} {bias}" if has_bias else name


def _setting(model: nn.Module, module: nn.Module) -> str | None:
    """The setting that seems to say how many heads there are."""
    for owner in (getattr(model, "config", None), module):
        for name in _SETTINGS:
            if type(getattr(owner, name, None)) is int:
                return name
    return None


def _variants(model: nn.Module, module: nn.Module, row: AttentionRow) -> Iterator[AttentionRow]:
    """The row in the layouts that it may have, the likeliest first."""
    layouts: tuple[Fused, ...] = ("",)
    if row.q == row.k:
        layouts = ("side by side", "interleaved")
    mixtures: list[tuple[str, ...]] = [()]
    if any("norm" in name for name, _ in module.named_parameters()):
        mixtures.append(("q", "k"))
    for kv_heads in _kv_heads(model, row):
        for layout in layouts:
            for mixed in mixtures:
                yield replace(row, kv_heads=kv_heads, fused=layout, mixed=mixed)


def _best_variant(
    model: nn.Module, kind: str, module: nn.Module, row: AttentionRow, example: Example | None
) -> tuple[AttentionRow, str]:
    """The first variant that holds, or the first of all with what is wrong with it."""
    first = None
    for variant in _variants(model, module, row):
        problem = _problem_of(model, kind, variant, example)
        if not problem:
            return variant, ""
        first = first or (variant, problem)
    assert first is not None
    return first


def _kv_heads(model: nn.Module, row: AttentionRow) -> list[int | str]:
    """How many heads of keys and values there may be."""
    config = getattr(model, "config", None)
    if type(getattr(config, "num_key_value_heads", None)) is not int:
        numbers: list[int | str] = [""]
    else:
        numbers = ["num_key_value_heads"]
    if row.q == row.k:
        numbers += [1, ""]
    return list(dict.fromkeys(numbers))


def _problem_of(model: nn.Module, kind: str, row: AttentionRow, example: Example | None) -> str:
    """The problem of a row, in words; ``""``: none."""
    try:
        anatomy = read(model, (row,), kind)
        assert anatomy is not None
        verify(model, anatomy, example)
    except InputError as error:
        return str(error)
    return ""


def written_row(row: AttentionRow) -> str:
    """A row as one would type it.

    >>> written_row(AttentionRow("layers.*.attn", q="q", k="k", v="v", o="o", kv_heads=2))
    "rllc.AttentionRow('layers.*.attn', q='q', k='k', v='v', o='o', kv_heads=2)"
    """
    arguments = [repr(row.at)]
    for name, default in _DEFAULTS.items():
        value = getattr(row, name)
        if name != "at" and value != default:
            arguments.append(f"{name}={value!r}")
    return f"rllc.AttentionRow({', '.join(arguments)})"
