"""One attention of a model, called again and again with random weights in the place of its own.

What a slice of a map belongs to does not depend on the weights, and those of a model may be zeros.
So each attention module is called with the arguments of a run of the model, but with random hidden
states and weights, in float32. Nothing of the model changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rllc.anatomy import inputs
from rllc.anatomy.attention import INPUTS, Anatomy, Attention, Letter, Map
from rllc.errors import InputError

_STATES = frozenset(
    (
        "hidden_states",
        "key_value_states",
        "encoder_hidden_states",
        "query",
        "key",
        "value",
        "query_input",
        "key_input",
        "value_input",
        "x",
    )
)
"""Names that attentions give to the hidden states that they read."""

Changes = Mapping[str, Tensor]
"""Parameters that have other values, by their names in the model."""


# What each attention is called with.


def calls_of(
    model: nn.Module, anatomy: Anatomy, example: inputs.Example | None
) -> dict[str, inputs.Example]:
    """The arguments of each attention module in a run of the model, as far as it is called."""
    calls: dict[str, inputs.Example] = {}
    missing = []
    for attention in anatomy.attentions:
        module = model.get_submodule(attention.module)
        if isinstance(module, nn.MultiheadAttention):
            calls[attention.module] = _call_of_multihead(module)
        else:
            missing.append(attention.module)
    if not missing:
        return calls
    for path in dict.fromkeys(missing):
        if path not in calls:
            calls |= _run_around(model, path, missing, example)
    return calls


def _run_around(
    model: nn.Module, path: str, missing: Sequence[str], example: inputs.Example | None
) -> dict[str, inputs.Example]:
    """Run the smallest part of the model around a module that can be run and calls it."""
    own = list(missing)
    problem = None
    for root, module in _around(model, path):
        candidates = inputs.examples(module)
        if example is not None:
            candidates = iter([] if root else [example])
        for candidate in candidates:
            with _recorded(model, own) as calls:
                wrong = inputs.run(module, candidate)
            problem = problem or wrong
            if path in calls:
                return calls
            if not root and wrong is None:
                return calls
    if problem is not None:
        raise InputError(
            f"anatomy({type(model).__name__}): a head is verified by running the model, and it "
            f"could not be run ({problem}). Call rllc.anatomy(model, example=batch) first, with a "
            f"small batch as the model is called with: a tensor, a tuple or a dict of arguments."
        )
    return {}


def _around(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold a module and say what they read, from the inside out; then the model."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:end])
        module = model.get_submodule(outer)
        if hasattr(module, "main_input_name"):
            yield outer, module
    yield "", model


@contextmanager
def _recorded(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, inputs.Example]]:
    """Note what modules are called with."""
    calls: dict[str, inputs.Example] = {}
    handles = []
    for path in dict.fromkeys(paths):

        def note(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path
        ) -> None:
            calls[path] = inputs.Example(_copied(args), _copied(kwargs))

        hook = model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
        handles.append(hook)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    """Arguments as they are now, floats in float32."""
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy.float() if copy.is_floating_point() else copy
    if type(value) in (tuple, list):
        return type(value)(_copied(item) for item in value)
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    return value


def _call_of_multihead(module: nn.MultiheadAttention) -> inputs.Example:
    stream = torch.Generator().manual_seed(1)
    device = module.out_proj.weight.device
    sizes = (module.embed_dim, module.kdim, module.vdim)
    states = [torch.randn(4, 4, size, generator=stream).to(device) for size in sizes]
    return inputs.Example(tuple(states), {"need_weights": False})


def _renewed(module: nn.Module, call: inputs.Example, stream: torch.Generator) -> inputs.Example:
    """The same call with random hidden states, and without a cache that calls would fill."""

    def renew(name: str, value: Any) -> Any:
        if name in _STATES and isinstance(value, Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=stream).to(value.device)
        if name == "use_cache":
            return False
        return None if type(value).__name__.endswith("Cache") else value

    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError:
        return call
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: renew(key, item) for key, item in value.items()}
        elif signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = renew(name, value)
    return inputs.Example(bound.args, bound.kwargs)


# One attention, called again and again.


@dataclass(eq=False)
class Trial:
    """An attention with random weights: what it gives when some of them change.

    Args:
        attention: what is checked.
        doing: what an error begins with.
        unit: the module that is called: the attention, or the whole model where it is not called.
        call: its arguments.
        names: for each parameter of the unit, its name in the model.
        values: random numbers for them, by names in the model.
        buffers: of the unit, in float32.
        writes: the module of o, or another that is called on what o reads.
    """

    attention: Attention
    doing: str
    unit: nn.Module
    call: inputs.Example
    names: dict[str, str]
    values: dict[str, Tensor]
    buffers: dict[str, Tensor]
    writes: nn.Module | None = None
    outputs: dict[frozenset[int], Tensor] = field(default_factory=dict)

    def run(self, changes: Changes) -> Tensor:
        """The unit's output."""
        values = {**self.values, **changes}
        own = {name: values[name_in_model] for name, name_in_model in self.names.items()}
        state = {**self.buffers, **own}
        return first_tensor(functional_call(self.unit, state, self.call.args, self.call.kwargs))

    def module_of(self, own: Map) -> tuple[str, nn.Module] | None:
        """The module inside the unit that is a map; ``None`` where there is only a parameter."""
        for name, name_in_model in self.names.items():
            path, _, last = name.rpartition(".")
            if name_in_model == own.weight and last == "weight" and path:
                return path, self.unit.get_submodule(path)
        return None

    def read_by_o(self, changes: Changes) -> Tensor | None:
        """The input of o, ``[batch, pos, head · d_head]``; ``None``: it is not called."""
        if isinstance(self.unit, _Layer):
            self.run(changes)
            return self.unit.z
        if self.writes is None:
            return None
        seen: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            z = args[0].detach().clone()
            seen.append(z.flatten(2) if z.dim() == 4 else z)

        handle = self.writes.register_forward_pre_hook(note)
        try:
            self.run(changes)
        finally:
            handle.remove()
        return seen[-1] if seen else None

    def passed_on(self, changes: Changes) -> Tensor:
        """The outputs of the heads, z ``[place, head, d_head]``."""
        read = self.read_by_o(changes)
        assert read is not None
        return self.apart(read)

    def apart(self, read: Tensor) -> Tensor:
        """The input of o, head by head: ``[place, head, d_head]``."""
        pieces = self.attention.o.pieces
        order = [start // (stop - start) for start, stop in pieces]
        d_head = read.shape[-1] // len(pieces)
        heads_in_place = read.reshape(-1, len(pieces), d_head)
        return heads_in_place[:, order]

    def scaled(self, letter: Letter, numbers: Sequence[int], factor: float) -> dict[str, Tensor]:
        """Slices of one map, times a factor."""
        own = self.attention.map(letter)
        changed: dict[str, Tensor] = {}
        for number in numbers:
            for name, index in own.slices(number).items():
                if name not in changed:
                    changed[name] = self.values[name].clone()
                changed[name][index] *= factor
        return changed

    def output(self, heads: frozenset[int], changes: Changes) -> Tensor:
        """The output when only some heads write."""
        if not changes and heads in self.outputs:
            return self.outputs[heads]
        others = [head for head in range(self.attention.num_heads) if head not in heads]
        output = self.run({**changes, **self.scaled("o", others, 0.0)})
        if not changes:
            self.outputs[heads] = output
        return output


def first_tensor(output: Any) -> Tensor:
    """The first tensor of real numbers in a module's output."""
    if isinstance(output, Tensor):
        output = (output,)
    values = output.values() if isinstance(output, Mapping) else output
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise TypeError("it gives no tensor of real numbers.")


def trial_of(
    model: nn.Module, anatomy: Anatomy, attention: Attention, call: inputs.Example | None
) -> Trial:
    """An attention that can be called again.

    Args:
        model: that it is part of.
        anatomy: of the model.
        attention: the one.
        call: what it was called with; ``None``: it is not called, so the model is.

    Raises:
        InputError: the model cannot be called.
    """
    doing = f"anatomy({type(model).__name__}), row of {anatomy.kind!r}, {attention.module!r}"
    stream = torch.Generator().manual_seed(2)
    module = model.get_submodule(attention.module)
    if call is None:
        call = _call_of_all(model, doing)
        doing = f"{doing} (which a run of the model does not call)"
        config = getattr(model, "config", None)
        is_own = getattr(config, "model_type", None) == "rllc_attention_only"
        unit = _Layer(model, attention.layer) if is_own else model
        return _with_random_weights(model, unit, attention, doing, call, stream)
    call = _renewed(module, call, stream)
    trial = _with_random_weights(model, module, attention, doing, call, stream)
    of_o = trial.module_of(attention.o)
    # TransformerLens gives what heads pass on to a module that does nothing.
    trial.writes = getattr(module, "hook_z", None) if of_o is None else of_o[1]
    return trial


class _Layer(nn.Module):
    """One block of an AttentionOnly, which says what its heads pass on."""

    def __init__(self, model: nn.Module, layer: int) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.z: Tensor | None = None

    def forward(self, input_ids: Tensor, **others: object) -> Tensor:
        """The residual stream after the block."""
        model: Any = self.model
        activations = model.activations(input_ids)
        z = activations.z[self.layer][0]
        self.z = z.transpose(1, 2).flatten(2)
        residual: Tensor = activations.residual[self.layer + 1]
        return residual


def _call_of_all(model: nn.Module, doing: str) -> inputs.Example:
    for candidate in inputs.examples(model):
        if inputs.run(model, candidate) is None:
            return candidate
    raise InputError(f"{doing}: no forward pass of the model calls it, so it cannot be verified.")


def _with_random_weights(
    model: nn.Module,
    unit: nn.Module,
    attention: Attention,
    doing: str,
    call: inputs.Example,
    stream: torch.Generator,
) -> Trial:
    names_in_model = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {}
    values: dict[str, Tensor] = {}
    for name, parameter in unit.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            names[name] = names_in_model[id(parameter)]
            if names[name] not in values:
                values[names[name]] = _random(names[name], parameter, attention, stream)
    buffers = {}
    for name, buffer in unit.named_buffers():
        if buffer.is_floating_point() and buffer.dtype != torch.float32:
            buffers[name] = buffer.detach().float()
    return Trial(attention, doing, unit, call, names, values, buffers)


def _random(name: str, parameter: Tensor, attention: Attention, stream: torch.Generator) -> Tensor:
    """Random numbers for a parameter: scales about 1, biases of a third, maps that keep norms."""
    is_bias = name in {attention.map(letter).bias for letter in INPUTS}
    if parameter.dim() < 2 and not is_bias:
        scale = 0.5 + torch.rand(parameter.shape, generator=stream)
        return scale.to(parameter.device)
    value = torch.randn(parameter.shape, generator=stream)
    if is_bias:
        value = value / 3
    else:
        # Scores of a tenth to a few, with and without a factor 1/√d_head.
        num_weights = max(parameter.numel(), 1)
        value = value * attention.d_head**-0.125 / num_weights**0.25
    return value.to(parameter.device)
