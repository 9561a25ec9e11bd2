"""A selection in words: which weights it takes from each tensor, and notes on its heads."""

from __future__ import annotations

from torch import nn

from rllc.errors import shortened
from rllc.tables import Shown, Table
from rllc.weights.resolving import Masks, Rule, attention_of, names_of_parameters, parameters_of

_SHARING = {
    "shared": "each head with the keys and values of its group, which {} heads share",
    "own": "without keys and values, which {} heads share (kv='own')",
    "group": "groups of {} heads, with the keys and values that they share",
}


def described(name: str, rule: Rule, masks: Masks, model: nn.Module) -> Shown:
    """Return the text of :meth:`rllc.Weights.describe`.

    Args:
        name: of the selection.
        rule: of the selection.
        masks: the weights that it takes, by parameter.
        model: without wrappers.
    """
    parameters = parameters_of(model)
    other_names = _other_names(model)
    lines = []
    rows = [("tensor", "shape", "weights", "of", "")]
    num_selected = 0
    num_frozen = 0
    for parameter, mask in masks.items():
        count = int(mask.sum())
        num_selected += count
        notes = []
        if not parameters[parameter].requires_grad:
            num_frozen += count
            notes.append("frozen")
        if parameter in other_names:
            listed = ", ".join(other_names[parameter])
            notes.append(f"also {listed}")
        shape = str(tuple(mask.shape))
        selected = f"{count:,}"
        of_all = f"{mask.numel():,}"
        line = f"  {parameter:<28} {shape:<18} {selected:>12} of {of_all}"
        lines.append(", ".join([line, *notes]))
        rows.append((parameter, shape, selected, of_all, ", ".join(notes)))
    num_weights = sum(parameter.numel() for parameter in parameters.values())
    title = f"{name}: {num_selected:,} of {num_weights:,} weights"
    if num_frozen:
        title += f", {num_frozen:,} of them frozen (requires_grad=False)"
    on_heads = _notes_on_heads(model, rule)
    table = Table(title, rows, left=(0, 1, 4), notes=on_heads)
    text = "\n".join([title, *lines, *on_heads])
    return Shown(text, table.html())


def _other_names(model: nn.Module) -> dict[str, list[str]]:
    """The further names of parameters that have several."""
    other_names: dict[str, list[str]] = {}
    for name, parameters in names_of_parameters(model).items():
        for parameter in parameters:
            if parameter != name:
                other_names.setdefault(parameter, []).append(name)
    return other_names


def _notes_on_heads(model: nn.Module, rule: Rule) -> list[str]:
    """Notes on the heads in a rule, once for each layer."""
    notes: dict[str, None] = {}  # each once, in order
    for kind, layer, _, tower, *options in _rules_of_heads(rule):
        attention = attention_of(model, layer, tower, options[-1])
        if attention is None:
            continue
        of_layer = f"  layer {attention.name}"
        num_sharing = attention.num_heads // attention.num_kv_heads
        if num_sharing > 1:
            way = "group" if kind == "group" else options[0]
            sharing = _SHARING[way].format(num_sharing)
            notes[f"{of_layer}: {sharing}"] = None
        for letter in attention.mixed:
            notes[
                f"{of_layer}: {letter} is normalised over all heads together, so "
                f"moving one head's moves every head's attention"
            ] = None
        if attention.note:
            notes[f"{of_layer}: {attention.note}"] = None
        if attention.rest:
            names = shortened(attention.rest)
            notes[f"  belongs to no head: {names}"] = None
    return list(notes)


def _rules_of_heads(rule: Rule) -> list[Rule]:
    """The heads and groups that a rule is made of."""
    kind, *arguments = rule
    if kind in ("head", "group"):
        return [rule]
    rules: list[Rule] = []
    if kind in ("or", "and"):
        for argument in arguments:
            rules += _rules_of_heads(argument)
    return rules
