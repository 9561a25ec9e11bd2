"""Models made from checkpoints, strictly.

Nothing is trusted: no pickled code runs, no remote code runs, and a tensor that is missing,
unexpected, misshaped or not finite is an error. transformers by itself would fill a missing tensor
with random numbers and go on.
"""

from __future__ import annotations

import contextlib
import operator
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rllc.errors import FileError, InputError
from rllc.models import reading
from rllc.models.checkpoints import Checkpoint, checkpoints, step_in_name, weight_files
from rllc.models.transformer_lens import Positions, infer_config, without_buffers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rllc.models.attention_only import AttentionOnlyConfig


def load(
    source: str | os.PathLike[str] | Checkpoint,
    step: int | None = None,
    *,
    positions: Positions | None = None,
    into: PreTrainedModel | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """A model from a checkpoint: float32, in eval mode, every tensor accounted for, none folded.

    >>> model = load("timaeus/tetrahedron-3m-og", step=8500)                      # doctest: +SKIP
    >>> for checkpoint in checkpoints("runs/seed0"):                              # doctest: +SKIP
    ...     model = load(checkpoint, into=model)

    Torch's global random state is left as it was. Where training recorded SHA-256 sums
    (``sha256.json`` in a step's folder) they are verified: a flipped byte in a safetensors file
    would load without a word.

    Args:
        source: a :class:`Checkpoint`, or a folder, state dict or hub id as in :func:`checkpoints`.
        step: which one; by default the last. In a long sweep list once and pass each
            ``Checkpoint``: finding a step in a hub repository asks the hub.
        positions: ``"shortformer"`` or ``"standard"``, for TransformerLens state dicts, which do
            not say it; by default ``"shortformer"``, the paper's. What the shapes do say is
            inferred: sizes from ``embed.W_E [d_vocab, d_model]``, ``pos_embed.W_pos [n_ctx,
            d_model]`` and ``blocks.0.attn.W_Q [head, d_model, d_head]``, layers from the names.
            ``layer_norm_eps`` is TransformerLens's 1e-5. Where a config.json says it, it must
            agree.
        into: a model of the same configuration, whose memory is filled and which is returned. If
            anything is wrong with the checkpoint, its weights stay as they were.
        device: where the model is put; by default the CPU, or where ``into`` is.

    Raises:
        InputError: there is no such step, ``into`` has another configuration, or ``positions``
            contradicts config.json.
        FileError: the checkpoint is missing, truncated or damaged, holds code or other objects
            besides tensors, or a tensor is missing, unexpected, misshaped or not finite.
    """
    path = _choose(source, step).path()
    if path.name == "model.safetensors" and path.with_name("config.json").is_file():
        # Its configuration is beside it and need not be inferred.
        path = path.parent
    model: Any
    # Building a model draws its initial weights.
    with torch.random.fork_rng(devices=[]):
        if path.is_file():
            model = _load_state_dict(path, positions, into)
        else:
            model = _load_folder(path, positions, into)
    if device is not None:
        model = model.to(device)
    return model.eval()


# Which checkpoint.


def _choose(source: str | os.PathLike[str] | Checkpoint, step: int | None) -> Checkpoint:
    if isinstance(source, Checkpoint):
        if step is not None and step != source.step:
            raise InputError(
                f"load: `step` is {step}, but the checkpoint given is of step {source.step}; drop "
                f"`step`."
            )
        return source
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"load: `source` must be a path, a hub id or a Checkpoint, got {type(source).__name__}."
        )
    listed = checkpoints(source)
    if step is None:
        return listed[-1]
    try:
        wanted = operator.index(step)
    except TypeError:
        raise InputError(f"load: `step` must be a whole number, got {step!r}.") from None
    return _of_step(source, listed, wanted)


def _of_step(source: object, listed: list[Checkpoint], step: int) -> Checkpoint:
    first = listed[0]
    is_whole_source = first.revision is None and first.file is None
    if is_whole_source and step_in_name(first.source) is None:
        raise InputError(
            f"load: {source} holds one model and does not say of which step; drop `step={step}`."
        )
    for checkpoint in listed:
        if checkpoint.step == step:
            return checkpoint
    steps = [checkpoint.step for checkpoint in listed]
    nearest_steps = sorted(sorted(steps, key=lambda other: abs(other - step))[:3])
    raise InputError(
        f"load: {source} has no step {step}; the nearest are {', '.join(map(str, nearest_steps))} "
        f"({len(steps)} checkpoints, steps {steps[0]} to {steps[-1]})."
    )


# From files to a model.


def _load_state_dict(
    path: Path, positions: Positions | None, into: PreTrainedModel | None
) -> PreTrainedModel:
    state = without_buffers(reading.read_tensors(path))
    config = infer_config(path, state, positions or "shortformer")
    return _fill(config, state, into, path)


def _load_folder(
    path: Path, positions: Positions | None, into: PreTrainedModel | None
) -> PreTrainedModel:
    settings = reading.read_json(path / "config.json")
    weights = weight_files(path)
    reading.check_sums(path, weights)
    # Imported late, because it imports transformers, which listing checkpoints need not.
    from rllc.models.attention_only import AttentionOnlyConfig

    if settings.get("model_type") != AttentionOnlyConfig.model_type:
        if positions is not None:
            raise InputError(
                f"load: `positions` is for attention-only models, and {path} is none; drop "
                f"`positions`."
            )
        return _load_transformers(path, into)
    try:
        config = AttentionOnlyConfig.from_dict(settings)
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
    state: dict[str, Tensor] = {}
    for file in weights:
        state |= reading.read_tensors(file)
    return _fill(config, state, into, path)


def _load_transformers(path: Path, into: PreTrainedModel | None) -> PreTrainedModel:
    """Any causal language model that transformers knows.

    transformers reads the files, and what it says of them is checked here.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                trust_remote_code=False,
                local_files_only=True,
                # Then tensors of a wrong shape come back in the report, by name.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            model, report = loaded
    except pickle.UnpicklingError as error:
        raise reading.refused_pickle(path, error) from None
    except Exception as error:
        raise FileError(
            f"loading {path} through transformers: {type(error).__name__}: {error}"
        ) from error
    misshaped = {name: tuple(shape) for name, shape, _ in report["mismatched_keys"]}
    reading.check_tensors(
        path,
        expected=_shapes(model.state_dict()),
        missing=report["missing_keys"],
        unexpected=report["unexpected_keys"],
        misshaped=misshaped,
    )
    reading.check_finite(path, dict(model.named_parameters()))
    if into is None:
        return model
    _check_into(into, model.config, type(model))
    into.load_state_dict(model.state_dict())
    return into


def _fill(
    config: AttentionOnlyConfig,
    state: Mapping[str, Tensor],
    into: PreTrainedModel | None,
    path: Path,
) -> PreTrainedModel:
    """An AttentionOnly with the tensors of ``state``, once they are what its parameters are."""
    from rllc.models.attention_only import AttentionOnly

    if into is not None:
        _check_into(into, config, AttentionOnly)
    model = AttentionOnly(config) if into is None else into
    expected = _shapes(model.state_dict())
    shapes = _shapes(state)
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
    model.load_state_dict(in_float32)
    return model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _of_other_shape(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        if name in expected and shape != expected[name]:
            yield name, shape


def _check_into(into: PreTrainedModel, config: Any, kind: type) -> None:
    if type(into) is not kind:
        raise InputError(
            f"load: `into` must be a {kind.__name__} like the checkpoint, got "
            f"{type(into).__name__}."
        )
    settings = _settings(into.config)
    of_checkpoint = _settings(config)
    differences = []
    for name in of_checkpoint | settings:
        if settings.get(name) != of_checkpoint.get(name):
            differences.append(
                f"{name} is {settings.get(name)!r}, the checkpoint's {of_checkpoint.get(name)!r}"
            )
    if differences:
        raise InputError(
            f"load: `into` has another configuration than the checkpoint: {'; '.join(differences)}."
        )
    for name, parameter in into.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"load: `into` must be float32, but its {name!r} is {parameter.dtype}; use "
                f"into.float()."
            )


def _settings(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides which function the model computes."""
    from transformers import PreTrainedConfig

    settings = config.to_dict()
    irrelevant = {*PreTrainedConfig().to_dict(), "initializer_range", "use_cache"}
    # How weights started, and private notes of transformers, change no function.
    prefixes = ("init_", "_")
    names = [name for name in settings if name not in irrelevant]
    return {name: settings[name] for name in names if not name.startswith(prefixes)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and report.

    Its findings are raised as errors here, and a sweep loads hundreds of models.
    """
    from transformers.utils import logging

    had_progress_bar = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bar:
            logging.enable_progress_bar()
