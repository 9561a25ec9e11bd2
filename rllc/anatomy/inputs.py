"""A small batch to run a model on: token ids, pixels, sound features, or both sides of a pair."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rllc.errors import InputError, first_line

POSITIONS = 6
"""Enough for a position that sees several others and is seen by several."""

ROWS = 2


class Example(NamedTuple):
    """The arguments of a module's call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def given(example: object) -> Example:
    """The batch that a user gave: a tensor, a tuple of them, or a dict of arguments.

    Raises:
        InputError: it is something else.
    """
    if isinstance(example, Tensor):
        return Example((example,), {})
    if isinstance(example, tuple):
        return Example(example, {})
    if isinstance(example, Mapping):
        return Example((), {str(name): value for name, value in example.items()})
    raise InputError(
        f"anatomy: `example` must be a tensor, a tuple of arguments or a dict of them, as the "
        f"model is called with; got {type(example).__name__}."
    )


def examples(module: nn.Module) -> Iterator[Example]:
    """Batches that a module can probably be called with, the likeliest first."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(module, "main_input_name"):
        yield from _examples_of_transformers(module, config)
        return
    vocabulary = _vocabulary(module)
    context = _context(module)
    tokens = _tokens(module, vocabulary, context)
    yield Example((tokens,), {})
    yield Example((tokens, tokens), {})
    width = _width(module)
    if width:
        states = _random(module, (ROWS, POSITIONS, width))
        yield Example((states,), {})
        yield Example((states, states), {})


def _examples_of_transformers(module: nn.Module, config: Any) -> Iterator[Example]:
    main = str(module.main_input_name)
    arguments = _arguments(module)
    takes_pixels = "pixel_values" in arguments and _sees(config)
    if main == "input_ids" and takes_pixels:
        both = _of_transformers(module, config, ("input_ids", "pixel_values"))
        yield Example((), both)
    alone = _of_transformers(module, config, (main,))
    if main in arguments:
        yield Example((), alone)
    else:
        # What wraps a model may call its first argument something else.
        yield Example((alone[main],), {})


def run(module: nn.Module, example: Example) -> str | None:
    """Call a module; what went wrong, or ``None``."""
    try:
        with torch.no_grad():
            module(*example.args, **example.kwargs)
    except Exception as error:  # whatever a model raises on an input that is not its own
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _of_transformers(module: nn.Module, config: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a transformers model."""
    arguments = _arguments(module)
    inputs: dict[str, Any] = {}
    for name in wanted:
        if name == "pixel_values":
            inputs[name] = _pixels(module, _part(config, "vision_config"))
        elif name == "input_features":
            inputs[name] = _sound(module, config)
        else:
            inputs[name] = _ids(module, _part(config, "text_config"))
    is_pair = getattr(config, "is_encoder_decoder", False)
    if is_pair and "decoder_input_ids" in arguments:
        ids = _tokens(module, config.vocab_size, POSITIONS)
        if "input_features" in inputs:
            # Sound comes in one row.
            ids = ids[:1]
        inputs["decoder_input_ids"] = ids
    if "use_cache" in arguments:
        inputs["use_cache"] = False
    return inputs


def _part(config: Any, name: str) -> Any:
    """A part of the settings, or the whole where they have no such part."""
    return getattr(config, name, None) or config


def _ids(module: nn.Module, settings: Any) -> Tensor:
    """Token ids that a model with these settings knows."""
    vocabulary: Any = getattr(settings, "vocab_size", None)
    if vocabulary is None:
        vocabulary = getattr(settings, "d_vocab", 2)
    context = _context(module, settings)
    return _tokens(module, vocabulary, context)


def _sound(module: nn.Module, config: Any) -> Tensor:
    """Random sound features of one row."""
    shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
    return _random(module, shape)


def _arguments(module: nn.Module) -> set[str]:
    """Names of the arguments of a module's forward pass."""
    return set(inspect.signature(module.forward).parameters)


def _sees(config: Any) -> bool:
    """Whether a model with these settings reads images."""
    vision = getattr(config, "vision_config", config)
    return hasattr(vision, "image_size")


def _pixels(module: nn.Module, config: Any) -> Tensor:
    """Random images."""
    size = config.image_size
    if isinstance(size, int):
        size = (size, size)
    height, width = size
    shape = (ROWS, config.num_channels, height, width)
    return _random(module, shape)


def _tokens(module: nn.Module, vocabulary: int, context: int) -> Tensor:
    """Rows of ids, all of them different as far as there are so many."""
    number = ROWS * min(POSITIONS, context)
    # The first ids are often those of padding and of the beginning.
    numbers = torch.arange(number) + 3
    ids = numbers % max(vocabulary, 1)
    return ids.reshape(ROWS, -1).to(_device(module))


def _random(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Random numbers of the model's own precision."""
    stream = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=stream)
    parameter = next(module.parameters(), None)
    if parameter is None or not parameter.is_floating_point():
        return values.to(_device(module))
    return values.to(parameter.device, parameter.dtype)


def _device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _vocabulary(module: nn.Module) -> int:
    """How many ids a model knows, by its settings or its embedding."""
    settings = getattr(module, "cfg", None)
    size = getattr(settings, "d_vocab", None)
    if isinstance(size, int):
        return size
    for name, parameter in module.named_parameters():
        if name.endswith("embed.W_E"):
            return int(parameter.shape[0])
    for inner in module.modules():
        if isinstance(inner, nn.Embedding):
            return inner.num_embeddings
    return 2


def _context(module: nn.Module, config: Any = None) -> int:
    """How many positions a model has, at most."""
    settings = config
    if settings is None:
        settings = getattr(module, "cfg", None)
    for name in ("n_ctx", "max_position_embeddings", "n_positions", "max_seq_len"):
        size = getattr(settings, name, None)
        if type(size) is int and size > 0:
            return size
    for name, parameter in module.named_parameters():
        if name.endswith("pos_embed.W_pos"):
            return int(parameter.shape[0])
    return POSITIONS


def _width(module: nn.Module) -> int:
    """The size of a model's hidden states, where it reads those."""
    for inner in module.modules():
        if isinstance(inner, nn.MultiheadAttention):
            return int(inner.embed_dim)
        if isinstance(inner, nn.Linear):
            return inner.in_features
    return 0
