"""What can be known to be wrong before a chain runs; each error says what was expected, what was got and what to type."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rllc import refinement as refine
from rllc.data.tokens import Tokens
from rllc.errors import InputError
from rllc.loss import Center, Distillation, LossFunction, next_token
from rllc.refinement import Refinement
from rllc.samplers import Sampler, sgld
from rllc.sampling import Sampling


def arguments(
    model: nn.Module, loss: LossFunction | None, sampler: Sampler | None, sampling: Sampling | None
) -> tuple[Sampler, Sampling]:
    """The paper's settings for what is ``None``; refuses what is of another kind."""
    sampler, sampling = sgld() if sampler is None else sampler, Sampling() if sampling is None else sampling
    wanted = (
        ("model", model, isinstance(model, nn.Module), "a torch.nn.Module; rllc.load(folder) gives one"),
        ("loss", loss, loss is None or callable(loss), "None, rllc.distillation(model) or a function f(module, batch)"),
        ("sampler", sampler, isinstance(sampler, Sampler), "a sampler such as rllc.sgld(lr=1e-3, localization=200.0)"),
        ("sampling", sampling, isinstance(sampling, Sampling), "rllc.Sampling(num_chains=4, num_draws=200)"),
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
        raise InputError("sampling: start='gaussian' may start outside the prior's box; pass start='center'.")
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
