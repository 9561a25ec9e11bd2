"""What can be known to be wrong before a chain runs; each error says what was expected, what was got and what to type."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rllc import refinement as refine
from rllc.data.tokens import Tokens
from rllc.draws import Draws
from rllc.errors import InputError
from rllc.loss import Center, Distillation, LossFunction, next_token
from rllc.refinement import Refinement
from rllc.samplers import Sampler, sgld
from rllc.sampling import Sampling

_OR_ANEW = "Give the same, or leave `resume` out to draw from the first draw on."

_ROUNDING = 1e-5
"""By how much, of 1 + itself, a loss in float32 may differ from one machine to another."""


def arguments(
    model: nn.Module, loss: LossFunction | None, sampler: Sampler | None, sampling: Sampling | None
) -> tuple[Sampler, Sampling]:
    """The paper's settings for what is ``None``; refuses what is of another kind."""
    sampler, sampling = (
        sgld() if sampler is None else sampler,
        Sampling() if sampling is None else sampling,
    )
    wanted = (
        (
            "model",
            model,
            isinstance(model, nn.Module),
            "a torch.nn.Module; rllc.load(folder) gives one",
        ),
        (
            "loss",
            loss,
            loss is None or callable(loss),
            "None, rllc.distillation(model) or a function f(module, batch)",
        ),
        (
            "sampler",
            sampler,
            isinstance(sampler, Sampler),
            "a sampler such as rllc.sgld(lr=1e-3, localization=200.0)",
        ),
        (
            "sampling",
            sampling,
            isinstance(sampling, Sampling),
            "rllc.Sampling(num_chains=4, num_draws=200)",
        ),
    )
    for name, value, right, expected in wanted:
        if not right:
            raise InputError(f"sampling: `{name}` must be {expected}; got {type(value).__name__}.")
    if sampling.start == "gaussian" and sampler.name != "sgld":
        raise InputError(
            f"sampling: start='gaussian' knows the law of rllc.sgld only, got {sampler.name}; pass start='center'."
        )
    if sampling.start == "gaussian" and sampler.localization == 0:
        raise InputError(
            "sampling: start='gaussian' needs a localization above 0, or flat directions start infinitely far away; "
            "pass rllc.sgld(localization=200.0), or start='center'."
        )
    if sampling.start == "gaussian" and "half_width" in sampler.options:
        raise InputError(
            "sampling: start='gaussian' may start outside the prior's box; pass start='center'."
        )
    return sampler, sampling


def check(
    model: nn.Module,
    loss: LossFunction | None,
    refinements: Sequence[Refinement],
    sampler: Sampler,
    sampling: Sampling,
) -> list[dict[str, Tensor]]:
    """Everything that can be known to be wrong before a chain runs; gives each refinement's masks."""
    resolved = {r.weights: r.weights.masks(model) for r in refinements}
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            bad = int((~parameter.detach().isfinite()).sum())
            raise InputError(
                f"sampling {type(model).__name__}: parameter {name!r} has {bad} non-finite numbers; expected finite "
                f"weights. Load a checkpoint from before training broke."
            )
    for r in {r.data_name: r for r in refinements}.values():
        rows = refine.num_rows(r.data)
        if rows < sampling.batch_size:
            raise InputError(
                f"sampling on data {r.data_name!r}: it has {rows} rows, fewer than a batch of {sampling.batch_size}; "
                f"pass Sampling(batch_size={rows}) or more data."
            )
        if sampler.full_batch and sampling.batch_size != rows:
            raise InputError(
                f"sampling on data {r.data_name!r}: {sampler.name} accepts or rejects by the energy of all {rows} rows, "
                f"got batches of {sampling.batch_size}; pass Sampling(batch_size={rows}), or use rllc.sgld."
            )
        if isinstance(r.data, Tokens):
            _check_tokens(model, r.data, r.data_name)
        elif loss is None or loss is next_token or isinstance(loss, Distillation):
            got = ", ".join(f"{part.dtype} {list(part.shape)}" for part in r.data)
            raise InputError(
                f"sampling on data {r.data_name!r}: the loss of tokens needs rllc.Tokens or one tensor of token ids "
                f"[row, pos], got {got}; for other data pass loss=f, f(module, batch) giving per-example losses."
            )
    return [resolved[r.weights] for r in refinements]


def check_baseline(at: Center, name: str) -> None:
    """Whether the loss at w* is a number on the first minibatch."""
    if not bool(at.losses.isfinite().all()):
        bad = int((~at.losses.isfinite()).sum())
        raise InputError(
            f"sampling on data {name!r}: at w*, before any step, {bad} of the {at.losses.numel()} losses of the first "
            f"minibatch are not finite; expected a loss that is finite at the weights it is asked about."
        )


def check_resume(
    resume: Draws, refinements: Sequence[Refinement], settings: Mapping[str, Any]
) -> None:
    """Whether draws are of the same call with fewer draws."""
    if not isinstance(resume, Draws):
        raise InputError(
            f"sample: `resume` must be the rllc.Draws of rllc.sample(…, keep_states=True), got {type(resume).__name__}."
        )
    names = [(w, d) for w, d in zip(resume.weights, resume.data, strict=True)]
    pairs = [
        (name, resume.settings.get(name), value)
        for name, value in settings.items()
        if name != "num_draws"
    ]
    pairs.append(("(weights, data)", names, [r.name for r in refinements]))
    found = [f"{name}: {a} there, {b} now" for name, a, b in pairs if _json(a) != _json(b)]
    there, now = resume.settings["num_draws"], settings["num_draws"]
    if now < there:
        found.append(f"num_draws: {there} there, {now} now (it can only grow)")
    if found:
        raise InputError(f"sample: `resume` was made otherwise: {'; '.join(found)}. {_OR_ANEW}")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # as it is after a file


def check_states(resume: Draws, name: tuple[str, str], masks: str, stream: Tensor) -> None:
    """Whether draws hold the states of a refinement's chains, on such weights and from such a generator."""
    if name not in resume.states:
        raise InputError(
            f"sample: `resume` has no states of the chains of {name}; expected draws of rllc.sample(…, keep_states=True). "
            f"{_OR_ANEW}"
        )
    state = resume.states[name]
    if str(state["weights"][0]) != masks:
        raise InputError(
            f"sample: in `resume`, {name[0]!r} are other weights of the same name. {_OR_ANEW}"
        )
    if state["random"].shape[1:] != stream.shape:
        raise InputError(
            f"sample: `resume` was drawn on another kind of device, whose random numbers cannot be continued on this. "
            f"{_OR_ANEW}"
        )


def check_same_baseline(at: Center, before: float, name: str) -> None:
    """Whether a minibatch has the loss at w* that it had: with another model or loss it has another."""
    now = float(at.losses.double().mean())
    if not abs(now - before) <= _ROUNDING * (1 + abs(before)):
        raise InputError(
            f"sample: `resume` is of another model or loss: on the minibatch of its last draw from {name!r} the loss at w* was "
            f"{before:.6g}, and now is {now:.6g}. {_OR_ANEW}"
        )


def _check_tokens(model: nn.Module, data: Tokens, name: str) -> None:
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    vocabulary = getattr(config, "vocab_size", None) or getattr(config, "d_vocab", None)
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_ctx", None)
    if isinstance(vocabulary, int) and data.largest_id >= vocabulary:
        raise InputError(
            f"sampling on data {name!r}: it has token id {data.largest_id}, but the model's vocabulary has "
            f"{vocabulary} (ids 0 to {vocabulary - 1}); tokenize with the model's own tokenizer."
        )
    if isinstance(context, int) and data.rows.shape[1] > context:
        raise InputError(
            f"sampling on data {name!r}: its rows have {data.rows.shape[1]} positions, but the model's context is "
            f"{context}; tokenize with context_length={context}."
        )
