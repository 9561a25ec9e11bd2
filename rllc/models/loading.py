"""Models made from checkpoints, strictly.

Nothing is trusted: no pickled code runs, no remote code runs, and a tensor that is missing,
unexpected, misshaped or not finite is an error. transformers by itself would fill a missing tensor
with random numbers and go on.
"""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from rllc.errors import FileError, InputError, RllcError, first_line, must_be
from rllc.models import adapters, hub, reading
from rllc.models.checkpoint import Checkpoint, Into, Positions, state_of, weight_files
from rllc.models.checkpoints import CheckpointsLike, check_into, check_positions, checkpoints
from rllc.models.filling import fill, module_of
from rllc.models.hub import HubOptions
from rllc.models.likelihood import check_loss
from rllc.models.pretrained import (
    check_is_language_model,
    check_same_configuration,
    is_pretrained,
    load_pretrained,
    model_of,
)
from rllc.models.reading import Contents
from rllc.models.transformer_lens import (
    infer_config,
    is_configuration,
    is_transformer_lens,
    without_buffers,
)
from rllc.storage.files import load_arrays
from rllc.wrappers import unwrapped

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnlyConfig


def load(
    source: CheckpointsLike,
    step: int | None = None,
    *,
    positions: Positions | None = None,
    into: Into | None = None,
    device: torch.device | str | None = None,
    tokens: Any = None,
    allow: bool = False,
    **options: Unpack[HubOptions],
) -> Any:
    """A model from a checkpoint: in eval mode, every tensor accounted for, none folded.

    >>> model = load("timaeus/tetrahedron-3m-og", 8500, positions="shortformer")  # doctest: +SKIP
    >>> for checkpoint in checkpoints("runs/seed0"):                              # doctest: +SKIP
    ...     model = load(checkpoint, into=model)

    A folder with a LoRA adapter alone is merged into its base, W + (α/r) B A, which is read from
    where the adapter says that it is.

    Models of this package and of transformers are float32. Torch's global random state is left as
    it was. Where training recorded SHA-256 sums (``sha256.json`` in a step's folder) they are
    verified: a flipped byte in a safetensors file would load without a word.

    Args:
        source: a :class:`Checkpoint`, or a folder, state dict or hub id as in :func:`checkpoints`.
        step: which one; by default the last. In a long sweep list once and pass each
            ``Checkpoint``: finding a step in a hub repository asks the hub.
        positions: ``"shortformer"`` or ``"standard"``, for TransformerLens state dicts without
            their configuration, which do not say it. There is no default, because a model of one
            kind loads as the other without a word, and is wrong. A configuration is read where
            there is one: ``cfg`` in the file, ``config.json`` beside it. What the shapes say is
            inferred: sizes from ``embed.W_E [d_vocab, d_model]``, ``pos_embed.W_pos [n_ctx,
            d_model]`` and ``blocks.0.attn.W_Q [head, d_model, d_head]``, layers from the names.
        into: a module that the state dict is put into, in its own memory, and which is returned;
            or a function without arguments that makes one. Names may have one of the prefixes
            ``module.``, ``_orig_mod.``, ``model.`` more than its own. If anything is wrong with the
            checkpoint, its weights stay as they were. A model of transformers must be of the same
            configuration as the checkpoint, where that has one.
        device: where the model is put; by default the CPU, or where ``into`` is.
        tokens: rows of token ids ``[row, pos]``. The model's loss on them is printed, and one that
            is no better than their unigram entropy is refused: such a model was loaded wrongly, or
            was not trained.
        allow: accept such a loss, as of the first steps of a training run.
        options: ``revision``, ``subfolder``, ``cache_dir``, ``token`` for the Hugging Face hub.

    Raises:
        InputError: there is no such step, ``into`` has another configuration, ``positions`` is
            needed or contradicts the configuration, or the loss on ``tokens`` is too high.
        FileError: the checkpoint is missing, truncated or damaged, holds code or other objects
            besides tensors, or a tensor is missing, unexpected, misshaped or not finite.
    """
    check_into("load", into)
    check_positions("load", positions)
    must_be("load", "allow", allow, isinstance(allow, bool), "True or False")
    checkpoint = _choose(source, step, options)
    # Building a model draws its initial weights.
    with torch.random.fork_rng(devices=[]):
        model = _load(checkpoint, positions or checkpoint.positions, into)
    if device is not None:
        model = _on(model, device)
    model = model.eval()
    if tokens is not None:
        check_loss(model, tokens, allow)
    return model


def _on(model: nn.Module, device: torch.device | str) -> nn.Module:
    right = isinstance(device, str | torch.device)
    must_be("load", "device", device, right, "such as 'cpu' or 'cuda'")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch knows no such device, or has none
        raise InputError(
            f"load: the model cannot be put on `device` = {device!r}: {first_line(error)}."
        ) from error


def _choose(source: CheckpointsLike, step: int | None, options: HubOptions) -> Checkpoint:
    if isinstance(source, Checkpoint):
        if step is not None and step != source.step:
            raise InputError(
                f"load: `step` is {step}, but the checkpoint given is of step {source.step}; drop "
                f"`step`."
            )
        return source
    if not isinstance(source, str | os.PathLike | Mapping | list | tuple):
        raise InputError(
            f"load: `source` must be a path, a hub id or a Checkpoint, got {type(source).__name__}."
        )
    if isinstance(source, str | os.PathLike):
        _refuse_results(Path(source))
    hub.check_options("load", options)
    listed = checkpoints(source, **options)
    if not listed:
        raise InputError("load: the list of checkpoints is empty.")
    if step is None:
        return listed[-1]
    must_be("load", "step", step, not isinstance(step, bool), "a whole number")
    try:
        wanted = operator.index(step)
    except TypeError:
        raise InputError(f"load: `step` must be a whole number, got {step!r}.") from None
    return _of_step(source, listed, wanted)


def _of_step(source: object, listed: list[Checkpoint], step: int) -> Checkpoint:
    if listed[0].step is None:
        raise InputError(
            f"load: {source} holds one model and does not say of which step; drop `step={step}`."
        )
    for checkpoint in listed:
        if checkpoint.step == step:
            return checkpoint
    steps = [checkpoint.step for checkpoint in listed if checkpoint.step is not None]
    by_distance = sorted(steps, key=lambda listed_step: abs(listed_step - step))
    nearest_steps = ", ".join(str(near) for near in sorted(by_distance[:3]))
    raise InputError(
        f"load: {source} has no step {step}; the nearest are {nearest_steps} "
        f"({len(steps)} checkpoints, steps {steps[0]} to {steps[-1]})."
    )


def _refuse_results(path: Path) -> None:
    """Say what an ``.npz`` is. Models are in none."""
    if path.suffix != ".npz" or not path.is_file():
        return
    _, header = load_arrays(path)
    kind = header.get("kind", "arrays")
    advice = f"; type {kind}.load({str(path)!r})" if kind.startswith("rllc.") else ""
    raise FileError(f"loading {path}: expected a model, but it holds {kind}{advice}.")


def _load(checkpoint: Checkpoint, positions: Positions | None, into: Into | None) -> Any:
    if into is None and isinstance(checkpoint.weights, nn.Module):
        return _copied(checkpoint.weights)
    module = None
    if into is not None:
        module = module_of(into)
    elif isinstance(checkpoint.into, nn.Module):
        module = _copied(checkpoint.into)
    elif checkpoint.into is not None:
        module = module_of(checkpoint.into)
    if checkpoint.weights is not None:
        state = state_of(checkpoint.weights)
        return _from_state(str(checkpoint), Contents(state, None), None, positions, module)
    path = checkpoint.path()
    if path.name == "model.safetensors" and path.with_name("config.json").is_file():
        # Its configuration is beside it and need not be inferred.
        path = path.parent
    if path.is_dir() and adapters.is_adapter(path):
        base = adapters.base_of(path)
        try:
            # The base is read each time: `into` may have an adapter in it already.
            merged = load(base, into=module)
        except RllcError as error:
            raise FileError(
                f"loading {path}: its base {base!r} cannot be loaded ({first_line(error)})."
            ) from error
        adapters.merge(unwrapped(merged), path)
        return merged
    if path.is_file():
        reading.check_sums(path.parent, [path])
        contents = reading.read_contents(path)
        config = checkpoint.config_file(path)
        return _from_state(path, contents, config, positions, module)
    if (path / "config.json").is_file() and (module is None or is_pretrained(module)):
        return _load_folder(path, positions, module)
    files = weight_files(path)
    reading.check_sums(path, files)
    state = {}
    for file in files:
        state |= reading.read_tensors(file)
    return _from_state(path, Contents(state, None), None, positions, module)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(unwrapped(module))
    except RuntimeError as error:  # it keeps a result of a calculation
        raise InputError(
            f"load: the {type(module).__name__} cannot be copied ({error}); give a function that "
            f"makes one."
        ) from error


def _from_state(
    path: Path | str,
    contents: Contents,
    config_file: Path | None,
    positions: Positions | None,
    module: nn.Module | None,
) -> Any:
    """A model from tensors by name, and from what is said of it beside them.

    Args:
        path: where they come from.
        contents: tensors, and a configuration of the same file.
        config_file: a ``config.json`` about them.
        positions: as they were given.
        module: what is filled; ``None``: what the configuration, or the names, tell.
    """
    from rllc.models.attention_only import AttentionOnly, AttentionOnlyConfig

    settings: Mapping[str, Any] | None = contents.config
    if config_file is not None and not is_configuration(settings):
        settings = reading.read_json(config_file)
    is_own = module is not None and not isinstance(unwrapped(module), AttentionOnly)
    if is_own or (module is not None and not is_configuration(settings)):
        assert module is not None
        state = contents.state if is_own else without_buffers(contents.state)
        fill(module, state, path)
        return module
    kind = None if settings is None else settings.get("model_type")
    if kind == AttentionOnlyConfig.model_type:
        assert settings is not None
        config = _config_of(Path(path), settings, positions)
        return _fill(config, without_buffers(contents.state), module, Path(path))
    if is_transformer_lens(contents.state):
        state = without_buffers(contents.state)
        said = settings if is_configuration(settings) else None
        config = infer_config(Path(path), state, positions, said)
        return _fill(config, state, module, Path(path))
    if kind is not None and config_file is not None:
        assert settings is not None
        reading.check_sizes(config_file.parent, settings, [Path(path)])
        module = model_of(config_file)
        fill(module, contents.state, path)
        return module
    names = ", ".join(list(contents.state)[:3])
    raise FileError(
        f"loading {path}: no config.json; expected a folder that save_pretrained wrote, or "
        f"TransformerLens's names. Of a state dict with the names {names}, … it cannot be known "
        f"which model it is: type into=model, with a module like the one it was saved from, or "
        f"a function that makes one."
    )


def _config_of(
    path: Path, settings: Mapping[str, Any], positions: Positions | None
) -> AttentionOnlyConfig:
    """The configuration that a ``config.json`` of an AttentionOnly says."""
    from rllc.models.attention_only import AttentionOnlyConfig

    try:
        config = AttentionOnlyConfig.from_dict(dict(settings))
    except Exception as error:
        # transformers and huggingface_hub validate, each with errors of its own.
        raise FileError(
            f"loading {path}: config.json is not a configuration of AttentionOnly: {error}"
        ) from error
    if positions not in (None, config.positions):
        raise InputError(
            f"load: `positions` is {positions!r}, but the config.json in {path} says "
            f"{config.positions!r}; drop `positions`."
        )
    return config


def _load_folder(path: Path, positions: Positions | None, module: nn.Module | None) -> Any:
    into: Any = None if module is None else unwrapped(module)
    settings = reading.read_json(path / "config.json")
    state: dict[str, Tensor] = {}
    weights = weight_files(path)
    reading.check_sums(path, weights)
    if "model_type" not in settings and is_configuration(settings):
        state = {}
        for file in weights:
            state |= reading.read_tensors(file)
        return _from_state(path, Contents(state, settings), None, positions, module)
    # Imported late, because it imports transformers, which listing checkpoints need not.
    from rllc.models.attention_only import AttentionOnlyConfig

    if settings.get("model_type") != AttentionOnlyConfig.model_type:
        if positions is not None:
            raise InputError(
                f"load: `positions` is for attention-only models, and {path} is none; drop "
                f"`positions`."
            )
        check_is_language_model(path, settings)
        reading.check_sizes(path, settings, weights)
        loaded = load_pretrained(path, into)
        return loaded if module is None else module
    config = _config_of(path, settings, positions)
    state = {}
    for file in weights:
        state |= reading.read_tensors(file)
    return _fill(config, state, module, path)


def _fill(
    config: AttentionOnlyConfig,
    state: Mapping[str, Tensor],
    into: nn.Module | None,
    path: Path,
) -> nn.Module:
    """An AttentionOnly with the tensors of ``state``, once they are what its parameters are."""
    from rllc.models.attention_only import AttentionOnly

    if into is not None:
        own: Any = unwrapped(into)
        check_same_configuration(own, config, AttentionOnly)
    expected = _expected_shapes(path, config, state)
    shapes = reading.shapes_of(state)
    reading.check_tensors(
        path,
        expected=expected,
        missing=expected.keys() - shapes.keys(),
        unexpected=shapes.keys() - expected.keys(),
        misshaped=dict(_of_other_shape(shapes, expected)),
    )
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise FileError(
                f"loading {path}: {name!r} is {tensor.dtype}, {tensor.layout}; expected dense "
                f"floating-point numbers."
            )
    in_float32 = {name: tensor.detach().float() for name, tensor in state.items()}
    reading.check_finite(path, in_float32)
    model: Any = AttentionOnly(config) if into is None else unwrapped(into)
    model.load_state_dict(in_float32)
    return model if into is None else into


def _expected_shapes(
    path: Path, config: AttentionOnlyConfig, state: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, without making them: sizes may be any number."""
    from rllc.models.attention_only import AttentionOnly

    if config.n_layers > max(len(state), 100):
        raise FileError(
            f"loading {path}: its configuration says n_layers = {config.n_layers:,}, but it has "
            f"{len(state)} tensors."
        )
    try:
        with torch.device("meta"):
            return reading.shapes_of(AttentionOnly(config).state_dict())
    except RuntimeError as error:  # more bytes than 64 bits can count
        raise FileError(
            f"loading {path}: no model has the sizes of its configuration ({first_line(error)})."
        ) from error


def _of_other_shape(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        if name in expected and shape != expected[name]:
            yield name, shape
