"""Checks of arguments before a chain runs.

Each error says what was being done, what was expected, what was got and what to type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rllc.data.data import Data
from rllc.engine.chains import OR_ANEW
from rllc.errors import InputError, must_be
from rllc.limits import Limits
from rllc.losses.by_name import Distillation, next_token
from rllc.losses.checks import (
    SHIPPED,
    check_kind,
    check_model,
    check_rows,
    check_rows_of_no_numbers,
)
from rllc.losses.contract import Center, LossFunction
from rllc.losses.documents import Batch, shown
from rllc.samplers import Sampler, sgld
from rllc.sampling.draws import Draws
from rllc.sampling.model_checks import check_weights_are_there
from rllc.sampling.settings import Compute, Sampling
from rllc.statistics.biases import relaxation_times
from rllc.storage.identity import plain
from rllc.weights.refinement import Refinement
from rllc.wrappers import unwrapped

_MANY_STEPS = 1000
"""In so many steps a chain must forget its start to start at the Gaussian by default."""

_ROUNDING = 1e-5
"""By how much, of 1 + itself, a loss in float32 may differ from one machine to another."""


def arguments(
    model: nn.Module, loss: LossFunction | None, sampler: Sampler | None, sampling: Sampling | None
) -> tuple[Sampler, Sampling]:
    """Fill in the settings that are left out, and refuse what is of another kind.

    Raises:
        InputError: names the argument, and says what to type.
    """
    sampler = sgld() if sampler is None else sampler
    loader = "a torch.nn.Module; rllc.load(folder) gives one"
    _check_kind("model", model, isinstance(model, nn.Module), loader)
    check_weights_are_there(unwrapped(model))
    check_kind(loss)
    losses = (
        f"None, rllc.losses.distillation(model) or a function f(module, batch), such as {SHIPPED}"
    )
    is_function = callable(loss) and not isinstance(loss, type)
    _check_kind("loss", loss, loss is None or is_function, losses)
    samplers = "a sampler such as rllc.sgld(lr=1e-3, localization=200.0)"
    _check_kind("sampler", sampler, isinstance(sampler, Sampler), samplers)
    if sampling is None:
        sampling = default_sampling(sampler)
    settings = "rllc.Sampling(num_chains=4, num_draws=200)"
    _check_kind("sampling", sampling, isinstance(sampling, Sampling), settings)
    return sampler, with_start(sampler, sampling)


def default_sampling(sampler: Sampler) -> Sampling:
    """16 chains × 50 draws where chains forget a start that fast, else the paper's 4 × 200.

    It is the same work with the same spread of λ̂, and 16 chains' own means say more of its error.
    """
    many = Sampling(num_chains=16, num_draws=50)
    times = relaxation_times(sampler.lr, sampler.localization, many.num_steps)
    forget = _has_width(sampler) and times >= Limits().min_relaxation_times
    return many if forget else Sampling()


def with_start(sampler: Sampler, sampling: Sampling) -> Sampling:
    """Say where chains start, where ``start`` is ``None``.

    Raises:
        InputError: they cannot start where ``start`` says.
    """
    if sampling.start is None:
        gaussian = _has_width(sampler) and _forgets(sampler)
        return replace(sampling, start="gaussian" if gaussian else "center")
    if sampling.start == "gaussian":
        _check_gaussian_start(sampler)
    return sampling


def check_how(compute: object, limits: object = None, observe: object = None) -> None:
    """Refuse what is of another kind among the arguments that change no number.

    Raises:
        InputError: names the argument, and says what to type.
    """
    for name, value, kind in (("compute", compute, Compute), ("limits", limits, Limits)):
        right = value is None or isinstance(value, kind)
        _check_kind(name, value, right, f"None or an rllc.{kind.__name__}")
    right = observe is None or isinstance(observe, Mapping)
    _check_kind(
        "observe", observe, right, "a dict of observables, such as {'distance': rllc.distance()}"
    )


def chosen_weights(weights: Any, model: nn.Module) -> Any:
    """Weights as they are given, or as a function of the model gives them.

    Raises:
        InputError: it is no function that can: a class or a module.
    """
    if not callable(weights):
        return weights
    right = not isinstance(weights, type | nn.Module)
    expected = "rllc.Weights, a list or dict of them, or a function of the model such as rllc.heads"
    _check_kind("weights", weights, right, expected)
    return weights(model)


def _check_kind(name: str, value: object, right: bool, expected: str) -> None:
    must_be("sampling", name, value, right, expected)


def _has_width(sampler: Sampler) -> bool:
    """Whether chains may start at a Gaussian of the width that the sampler's law gives."""
    if sampler.law is None or sampler.law.deviation is None:
        return False
    return sampler.localization > 0 and "half_width" not in sampler.options


def _forgets(sampler: Sampler) -> bool:
    """Whether chains forget a start that is too wide, as it is where gradients tell too little.

    It does not depend on the number of draws, so that chains can go on.
    """
    times = relaxation_times(sampler.lr, sampler.localization, _MANY_STEPS)
    return times >= Limits().min_relaxation_times


def _check_gaussian_start(sampler: Sampler) -> None:
    if "half_width" in sampler.options:
        raise InputError(
            "sampling: start='gaussian' may start outside the prior's box; pass start='center'."
        )
    if sampler.law is None or sampler.law.deviation is None:
        raise InputError(
            f"sampling: start='gaussian' needs a sampler whose law gives the width of a direction, "
            f"as that of rllc.sgld does, got {sampler!r}; pass start='center'."
        )
    if sampler.localization == 0:
        raise InputError(
            "sampling: start='gaussian' needs a localization above 0, or flat directions start "
            "infinitely far away; pass rllc.sgld(localization=200.0), or start='center'."
        )


def check(
    model: nn.Module,
    loss: LossFunction | None,
    refinements: Sequence[Refinement],
    sampler: Sampler,
    sampling: Sampling,
) -> list[dict[str, Tensor]]:
    """Check all that can be known to be wrong before a chain runs.

    Returns:
        The masks of each refinement.

    Raises:
        InputError: the model has weights that are not finite, or data do not fit model, loss,
            sampler or minibatch.
    """
    _check_tuning(sampler, sampling)
    masks = {r.weights: r.weights.masks(model) for r in refinements}
    for name, parameter in model.named_parameters():
        _check_parameter(model, name, parameter)
    data_sets = {r.data_name: r.data for r in refinements}
    for name, data in data_sets.items():
        _check_number_of_rows(name, len(data), sampler, sampling)
        _check_batch(model, loss, name, data)
        check_rows(loss, data, name)
        check_model(model, loss, data, name)
        check_rows_of_no_numbers(model, loss, data, name)
    return [masks[r.weights] for r in refinements]


def _check_tuning(sampler: Sampler, sampling: Sampling) -> None:
    """Refuse draws from chains whose step size still moves."""
    steps = sampler.options.get("num_tuning_steps", 0)
    if steps > sampling.num_burnin_steps:
        raise InputError(
            f"sampling with {sampler}: its step size moves for {steps} steps, and draws would "
            f"begin after {sampling.num_burnin_steps}; while it moves the law does not hold. Type "
            f"rllc.Sampling(num_burnin_steps={steps}, ...)."
        )


def _check_parameter(model: nn.Module, name: str, parameter: Tensor) -> None:
    is_finite = parameter.detach().isfinite()
    num_broken = int((~is_finite).sum())
    if num_broken:
        raise InputError(
            f"sampling {type(model).__name__}: parameter {name!r} has {num_broken} non-finite "
            f"numbers; expected finite weights. Load a checkpoint from before training broke."
        )


def _check_number_of_rows(name: str, rows: int, sampler: Sampler, sampling: Sampling) -> None:
    sampling = sampling.of_rows(rows, full_batch=sampler.full_batch)
    assert sampling.batch_size is not None
    if rows < sampling.batch_size:
        raise InputError(
            f"sampling on data {name!r}: it has {rows} rows, fewer than a batch of "
            f"{sampling.batch_size}; pass Sampling(batch_size={rows}), Sampling() or more data."
        )
    if sampler.full_batch and sampling.batch_size != rows:
        raise InputError(
            f"sampling on data {name!r}: {sampler.name} accepts or rejects by the energy of all "
            f"{rows} rows, got batches of {sampling.batch_size}; leave batch_size out, or use "
            f"rllc.sgld."
        )


def _check_batch(model: nn.Module, loss: LossFunction | None, name: str, data: Data) -> None:
    """Hold one row against the model and the loss."""
    batch = data.take(torch.tensor([0]), torch.device("cpu"))
    _check_complex(model, name, batch)
    is_tokens = isinstance(batch, dict) and "input_ids" in batch
    if isinstance(batch, Tensor) and batch.dim() == 2 and batch.dtype == torch.int64:
        is_tokens = True
    if is_tokens:
        _check_token_ids(model, data, name)
    elif loss is None or loss is next_token or isinstance(loss, Distillation):
        parts = batch if isinstance(batch, tuple) else (batch,)
        shapes = [shown(part) for part in parts]
        if not isinstance(batch, dict):
            shapes = []
            for part in parts:
                assert isinstance(part, Tensor)
                shapes.append(f"{part.dtype} {[len(data), *part.shape[1:]]}")
        raise InputError(
            f"sampling on data {name!r}: the loss of tokens needs rllc.Tokens, one tensor of "
            f"token ids [row, pos] or a dict with `input_ids`, got {', '.join(shapes)}; for "
            f"other data pass loss=f, f(module, batch) giving per-example losses, such as "
            f"rllc.losses.classification."
        )


def _check_complex(model: nn.Module, name: str, batch: Batch) -> None:
    """Refuse complex data of a model that has no complex weights."""
    parts: list[Tensor]
    if isinstance(batch, dict):
        parts = list(batch.values())
    else:
        parts = list(batch) if isinstance(batch, tuple) else [batch]
    is_complex = any(part.is_complex() for part in parts)
    if is_complex and not any(parameter.is_complex() for parameter in model.parameters()):
        raise InputError(
            f"sampling on data {name!r}: it is complex ({shown(batch)}), and "
            f"{type(model).__name__} has no complex weights; give real and imaginary parts as "
            f"columns, torch.view_as_real(rows).flatten(1)."
        )


def _check_token_ids(model: nn.Module, data: Data, name: str) -> None:
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    vocabulary = _first_int(config, "vocab_size", "d_vocab")
    context = _first_int(config, "max_position_embeddings", "n_ctx")
    largest_id = getattr(data, "largest_id", None)
    if vocabulary is not None and largest_id is not None and largest_id >= vocabulary:
        raise InputError(
            f"sampling on data {name!r}: it has token id {largest_id}, but the model's vocabulary "
            f"has {vocabulary} (ids 0 to {vocabulary - 1}); tokenize with the model's own "
            f"tokenizer."
        )
    if context is not None and data.shape[0] > context:
        raise InputError(
            f"sampling on data {name!r}: its rows have {data.shape[0]} positions, but the model's "
            f"context is {context}; tokenize with context_length={context}."
        )


def _first_int(config: object, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value:
            return value
    return None


def check_resume(
    resume: Draws, refinements: Sequence[Refinement], settings: Mapping[str, Any]
) -> None:
    """Refuse draws that are not of the same call with fewer draws.

    Raises:
        InputError: lists what differs.
    """
    if not isinstance(resume, Draws):
        raise InputError(
            f"sample: `resume` must be the rllc.Draws of rllc.sample(…, "
            f"compute=rllc.Compute(keep_states=True)), got {type(resume).__name__}."
        )
    pairs: dict[str, tuple[Any, Any]] = {}
    pairs["(weights, data)"] = (list(resume.names), [r.name for r in refinements])
    for name, value in settings.items():
        if name not in ("num_draws", "ambient"):
            pairs[name] = (resume.settings.get(name), value)
    differences = []
    for name, (earlier, present) in pairs.items():
        if _json(earlier) != _json(present):
            differences.append(f"{name}: {earlier} there, {present} now")
    earlier, present = resume.settings["num_draws"], settings["num_draws"]
    if present < earlier:
        differences.append(f"num_draws: {earlier} there, {present} now (it can only grow)")
    if differences:
        raise InputError(
            f"sample: `resume` was made otherwise: {'; '.join(differences)}. {OR_ANEW}"
        )


def _json(value: Any) -> str:
    # Lists and tuples are the same after a file, and so are 30 and 30.0.
    return json.dumps(plain(value), sort_keys=True)


def check_same_baseline(at: Center, earlier: float, name: str) -> None:
    """Refuse another model or loss: it has another loss at w* on the same minibatch.

    Raises:
        InputError: gives both losses.
    """
    loss = float(at.mean)
    if not abs(loss - earlier) <= _ROUNDING * (1 + abs(earlier)):
        raise InputError(
            f"sample: `resume` is of another model or loss: on the minibatch of its last draw from "
            f"{name!r} the loss at w* was {earlier:.6g}, and now is {loss:.6g}. {OR_ANEW}"
        )


def check_same_identity(resume: Draws, present: Mapping[str, Any]) -> None:
    """Refuse draws of another model, loss or sampler, equal as their losses may be.

    Args:
        resume: earlier draws.
        present: :func:`rllc.storage.identity.of_call` of this call.

    Raises:
        InputError: says which differs, or cannot be told.
    """
    of_resumed = resume.settings.get("identity", {})
    for name, value in present.items():
        earlier = of_resumed.get(name)
        if value is None or earlier is None:
            raise InputError(
                f"sample: it cannot be told whether `resume` is of the same {name}, because "
                f"something within it cannot be looked into, or `resume` is of an earlier version "
                f"of rllc. For a loss of yours use rllc.losses.named(loss, 'my loss, version 1'). "
                f"{OR_ANEW}"
            )
        if earlier != value:
            what = "version of the library's numbers" if name == "numerics" else name
            raise InputError(
                f"sample: `resume` is of another {what} ({_short(earlier)} there, {_short(value)} "
                f"now). {OR_ANEW}"
            )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text
