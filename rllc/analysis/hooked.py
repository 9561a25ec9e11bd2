"""Heads of any causal language model: what they pass on, read and replaced before o reads it.

What a head passes on is z, the slice of the input of its attention's output map. A hook there
reads or replaces it, so this works on every model whose anatomy is known and whose output maps are
modules; each change is a forward pass of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rllc.anatomy import Anatomy, Attention, anatomy
from rllc.engine.modes import in_mode, one_arithmetic
from rllc.errors import InputError
from rllc.wrappers import unwrapped


class Hooked(NamedTuple):
    """A causal language model and the modules that read what its heads pass on."""

    model: nn.Module
    anatomy: Anatomy
    writers: tuple[nn.Module, ...]
    """The module of o of each attention."""
    d_vocab: int
    n_ctx: int


def hooked(model: nn.Module, caller: str) -> Hooked:
    """A model whose heads can be read and replaced.

    Args:
        model: any causal language model with a known anatomy.
        caller: the function that error messages name.

    Raises:
        InputError: its heads are not known or not reachable, or a prediction depends on tokens
            after it.
    """
    model = unwrapped(model)
    _refuse_pairs(model, caller)
    described = anatomy(model)
    writers = tuple(_writer(model, attention, caller) for attention in described.attentions)
    d_vocab, n_ctx = sizes(model, caller)
    result = Hooked(model, described, writers, d_vocab, n_ctx)
    _check_causal(result, caller)
    return result


def _refuse_pairs(model: nn.Module, caller: str) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(
            f"{caller}: {type(model).__name__} has an encoder and a decoder, and rows of tokens "
            f"are not enough to run it; expected a model of one stack."
        )


def sizes(model: nn.Module, caller: str) -> tuple[int, int]:
    """How many ids and positions a model knows."""
    config: Any = getattr(model, "config", None)
    numbers = []
    for names in (("d_vocab", "vocab_size"), ("n_ctx", "max_position_embeddings", "max_seq_len")):
        values = [getattr(config, name, None) for name in names]
        numbers += [next((value for value in values if type(value) is int), None)]
    d_vocab, n_ctx = numbers
    if d_vocab is None:
        raise InputError(
            f"{caller}: {type(model).__name__} does not say how many token ids it knows "
            f"(config.vocab_size); expected a language model."
        )
    # Without a table of positions, as with ALiBi, any number will do.
    return d_vocab, n_ctx or 2**20


def _writer(model: nn.Module, attention: Attention, caller: str) -> nn.Module:
    path, _, name = attention.o.weight.rpartition(".")
    module = model.get_submodule(path)
    whole = model.get_submodule(attention.module)
    # nn.MultiheadAttention has a module for its outputs, and never calls it.
    if name == "weight" and module is not whole and not isinstance(whole, nn.MultiheadAttention):
        return module
    raise InputError(
        f"{caller}: what the heads of {attention.module!r} pass on cannot be replaced, as "
        f"{attention.o.weight!r} is no module that is called on it; expected maps that are "
        f"modules, or an rllc.models.AttentionOnly."
    )


def _check_causal(subject: Hooked, caller: str) -> None:
    """Refuse a model that looks at what it is to predict."""
    parameter = next(subject.model.parameters())
    ids = torch.arange(6, device=parameter.device) % subject.d_vocab
    changed = ids.clone()
    changed[-1] = (ids[-1] + 1) % subject.d_vocab
    with torch.no_grad():
        first, second = logits(subject, torch.stack([ids, changed])).float()
    if not torch.allclose(first[:-1], second[:-1], rtol=1e-3, atol=1e-5):
        raise InputError(
            f"{caller}: {type(subject.model).__name__} sees later tokens when it predicts, and a "
            f"loss on the next token says nothing of it; expected a causal language model."
        )


def logits(subject: Hooked, ids: Tensor) -> Tensor:
    """The logits of each position, ``[batch, pos, vocab]``, in eval mode."""
    with one_arithmetic(), in_mode(subject.model, False), torch.no_grad():
        output = subject.model(ids)
    values = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(values, Tensor) or values.shape[:2] != ids.shape:
        raise InputError(
            f"{type(subject.model).__name__} gives no logits [batch, pos, vocab]; expected a "
            f"language model with its unembedding (AutoModelForCausalLM, not AutoModel)."
        )
    return values


def losses(subject: Hooked, rows: Tensor) -> Tensor:
    """The loss of predicting each token but the first, ``[batch, pos − 1]``, nats."""
    values = logits(subject, rows[:, :-1]).float()
    return nn.functional.cross_entropy(values.mT, rows[:, 1:], reduction="none")


def outputs(subject: Hooked, ids: Tensor) -> list[Tensor]:
    """The outputs of the heads of each attention, ``[batch, pos, head, d_head]``."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for number, writer in enumerate(subject.writers):

            def note(module: nn.Module, args: tuple[Any, ...], number: int = number) -> None:
                seen[number] = args[0].detach()

            stack.callback(writer.register_forward_pre_hook(note).remove)
        logits(subject, ids)
    parts = []
    for number, attention in enumerate(subject.anatomy.attentions):
        parts.append(seen[number].unflatten(-1, (attention.num_heads, attention.d_head)))
    return parts


@contextmanager
def replaced(
    subject: Hooked, heads: Mapping[int, Sequence[int]], values: Sequence[Tensor]
) -> Iterator[None]:
    """Let some heads pass on other values.

    Args:
        subject: the model.
        heads: by the number of their attention.
        values: for each attention ``[batch or 1, pos or 1, head, d_head]``.
    """
    with ExitStack() as stack:
        for number, chosen in heads.items():
            attention = subject.anatomy.attentions[number]

            def replace(
                module: nn.Module,
                args: tuple[Any, ...],
                attention: Attention = attention,
                chosen: Sequence[int] = tuple(chosen),
                new: Tensor = values[number],
            ) -> tuple[Any, ...]:
                z = args[0].unflatten(-1, (attention.num_heads, attention.d_head)).clone()
                for head in chosen:
                    z[..., head, :] = new[..., head, :].to(z.dtype)
                return (z.flatten(-2), *args[1:])

            hook = subject.writers[number].register_forward_pre_hook(replace)
            stack.callback(hook.remove)
        yield


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Attention that gives its patterns."""
    any_model: Any = model
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before is None or before == "eager":
        yield
        return
    any_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        any_model.set_attn_implementation(before)


def patterns_of(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """The attention of each layer, ``[batch, head, query, key]``.

    Raises:
        InputError: the model does not give them, or not one a layer.
    """
    _refuse_pairs(model, "patterns")
    number = len(anatomy(model).attentions)
    any_model: Any = model
    with eager(model), one_arithmetic(), in_mode(model, False), torch.no_grad():
        output = any_model(ids, output_attentions=True)
    attentions = getattr(output, "attentions", None) or ()
    if len(attentions) != number or any(pattern is None for pattern in attentions):
        raise InputError(
            f"patterns: {type(model).__name__} gives {len(attentions)} attention patterns "
            f"(output_attentions=True) for its {number} attentions; expected one for each."
        )
    return [pattern.detach() for pattern in attentions]
