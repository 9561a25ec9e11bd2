"""Causal language models of transformers, from a folder that ``save_pretrained`` wrote.

transformers reads the files; what it says of them is checked here, and what it would fill with
random weights is refused.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rllc.errors import FileError, InputError
from rllc.models import reading
from rllc.wrappers import unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_OLD_BUFFER = re.compile(r"(?:.*\.)?h\.\d+\.attn\.(?:bias|masked_bias)")
"""The masks that GPT-2's attention once saved beside its weights, as in the checkpoints of
stanford-crfm. transformers leaves out those that it knows."""


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a model of transformers, or one that is wrapped."""
    from transformers import PreTrainedModel

    return isinstance(unwrapped(module), PreTrainedModel)


def model_of(config_file: Path) -> nn.Module:
    """A model of transformers with the configuration of a file, its weights as they start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            config_file.parent, local_files_only=True, trust_remote_code=False
        )
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).float()
    except Exception as error:
        raise FileError(
            f"loading {config_file}: {type(error).__name__}: {error}; type into=model."
        ) from error


def check_is_language_model(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse by name what transformers would fill with random weights, or read in few bits."""
    if settings.get("quantization_config"):
        raise FileError(
            f"loading {path}: its weights are quantised (quantization_config in config.json), and "
            f"λ̂ needs weights that can move a little; load a float version of the model."
        )
    architectures = settings.get("architectures") or [""]
    architecture = str(architectures[0])
    if re.search(r"For(Sequence|Token|Image|Audio|Video)Classification|RewardModel", architecture):
        raise FileError(
            f"loading {path}: it is a {architecture}, no language model. Load it with "
            f"transformers.{architecture}.from_pretrained(folder), and pass the model with a loss "
            f"for it, such as rllc.losses.classification or one of your own."
        )


def load_pretrained(path: Path, into: PreTrainedModel | None) -> PreTrainedModel:
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
        expected=reading.shapes_of(model.state_dict()),
        missing=report["missing_keys"],
        unexpected=[name for name in report["unexpected_keys"] if not _OLD_BUFFER.fullmatch(name)],
        misshaped=misshaped,
    )
    reading.check_finite(path, dict(model.named_parameters()))
    if into is None:
        return model
    check_same_configuration(into, model.config, type(model))
    into.load_state_dict(model.state_dict())
    return into


def check_same_configuration(into: PreTrainedModel, config: Any, kind: type) -> None:
    """Refuse to fill a model of another kind, configuration or precision than the checkpoint's."""
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
