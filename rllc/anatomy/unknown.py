"""The error for a model of an unknown type: the attention that it seems to have, as a row."""

from __future__ import annotations

import re

from torch import Tensor, nn

from rllc.anatomy.rows import Rows
from rllc.errors import InputError

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")

_LIKELY = {
    "q": r"(w_?)?q(_?proj|_?lin|uery)?|to_q|query_proj|queries",
    "k": r"(w_?)?k(_?proj|_?lin|ey)?|to_k|key_proj|keys",
    "v": r"(w_?)?v(_?proj|_?lin|alue)?|to_v|value_proj|values",
    "o": r"(w_?)?o(_?proj|ut|ut_proj|ut_lin|utput)?|dense|c_proj|proj|to_out(\.0)?|output\.dense",
    "qkv": r"w?qkv(_proj)?|c_attn|query_key_value|in_proj|to_qkv",
}
"""Usual names of maps."""

_SETTINGS = ("num_attention_heads", "n_heads", "num_heads", "n_head")

_MOST = 6
"""Attention modules that are shown."""


def no_row(model: nn.Module, kind: str, given: Rows) -> InputError:
    """The error; its last lines are a row that can be pasted and filled in."""
    name = type(model).__name__
    shown = _attention_modules(model)
    if not shown:
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
    listed = []
    for pattern, module in list(shown.items())[:_MOST]:
        listed.append(f"  {pattern}: {type(module).__name__}")
        for inner, shape in _tensors(module):
            listed.append(f"    {inner} {shape}")
    more = f"\n  … and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    rows = ",\n".join(_row(model, pattern, module) for pattern, module in shown.items())
    listing = "\n".join(listed)
    return InputError(
        f"heads({name}): {problem}. It has attention modules at\n{listing}{more}\n"
        f"Say which tensors are its maps of queries, keys and values and its output, and how many "
        f"heads there are; the row is then verified by running the model:\n"
        f"row = [\n{rows},\n]\nrllc.heads(model, anatomy=row)"
    )


def _attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """One module for each path of attention modules; those inside of others are left out."""
    found: dict[str, nn.Module] = {}
    outer: list[str] = []
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        looks = re.search(r"attn|attention", f"{type(module).__name__} {last}", re.IGNORECASE)
        if not looks or not path or len(_tensors(module)) < 2:
            continue
        if any(path.startswith(f"{before}.") for before in outer):
            continue
        outer.append(path)
        found.setdefault(_pattern(path), module)
    return found


def _pattern(path: str) -> str:
    """A path with ``*`` for its first number, which is mostly that of the block."""
    return _NUMBER.sub("*", path, count=1)


def _tensors(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the matrices inside: those of maps by their modules."""
    tensors = []
    for name, parameter in module.named_parameters():
        if parameter.dim() in (2, 3):
            tensors.append((name.removesuffix(".weight"), tuple(parameter.shape)))
    return tensors


def _row(model: nn.Module, pattern: str, module: nn.Module) -> str:
    names = [name for name, _ in _tensors(module)]
    together = _like("qkv", names)
    maps = {letter: together or _like(letter, names) or "…" for letter in ("q", "k", "v")}
    maps["o"] = _like("o", [name for name in names if name != together]) or "…"
    written = ", ".join(f"{letter}={name!r}" for letter, name in maps.items())
    fused = ', fused="side by side"' if together else ""
    return f"    rllc.AttentionRow({pattern!r}, {written}{fused}, {_heads(model, module)})"


def _like(letter: str, names: list[str]) -> str | None:
    for name in names:
        last = name.rpartition(".")[2]
        for written in (name, last):
            if re.fullmatch(_LIKELY[letter], written, re.IGNORECASE):
                return name
    return None


def _heads(model: nn.Module, module: nn.Module) -> str:
    """The settings that seem to say how many heads there are."""
    config = getattr(model, "config", None)
    written = "heads=…"
    for owner in (config, module):
        for setting in _SETTINGS:
            value = getattr(owner, setting, None)
            if written.endswith("…") and type(value) is int:
                written = f"heads={setting!r}"
    groups = getattr(config, "num_key_value_heads", None)
    if isinstance(groups, int) and not isinstance(groups, Tensor):
        written += ", kv_heads='num_key_value_heads'"
    return written
