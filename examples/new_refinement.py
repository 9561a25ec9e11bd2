"""Weights, data, losses and observables of your own: each is an argument, in a few lines."""

# %% A model and rows of tokens, made up so that this runs anywhere
import sys

import torch
import torch.nn.functional as F
from torch import nn

import rllc
from rllc.models import AttentionOnly, AttentionOnlyConfig

torch.manual_seed(0)
config = AttentionOnlyConfig(d_model=32, n_heads=4, d_head=8, n_ctx=32, d_vocab=100)
model = AttentionOnly(config).eval()
rows = torch.randint(0, 100, (256, 32))
num_draws = 5 if "--tiny" in sys.argv else 100
sampling = rllc.Sampling(num_draws=num_draws, batch_size=16)

# %% Your own weights: compose what there is, take slices by name, or give boolean masks
values = rllc.parameters("*.W_V", index=2)
outputs = rllc.parameters("*.W_O", index=2)
value_side = (values | outputs).named("V and O of heads 2")
circuit = (rllc.head("0:1") | rllc.head("1:3")).named("0:1 and 1:3")
is_large = {
    name: parameter.abs() > parameter.abs().median() for name, parameter in model.named_parameters()
}
large = rllc.masks(is_large, "large weights")
print(value_side.describe(model))
print(rllc.estimate(model, rows, [value_side, circuit, large], sampling=sampling))

# %% Your own data: any rows, named; here those in which some token comes twice in a row
doubled = (rows[:, 1:] == rows[:, :-1]).any(1)
data = {"all": rows, "with doubles": rllc.Tokens(rows[doubled], name="with doubles")}
print(rllc.estimate(model, data, "1:3", sampling=sampling))


# %% Your own loss: one number a row or a token; here only the second half of each row counts
def second_half(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits = module(batch).logits[:, 15:-1]
    return F.cross_entropy(logits.transpose(1, 2), batch[:, 16:], reduction="none")


print(rllc.estimate(model, rows, ["0:1", "1:3"], loss=second_half, sampling=sampling))

# %% Another model's predictions as the data: what a one-layer model of the same text would say
small_config = AttentionOnlyConfig(
    n_layers=1, d_model=32, n_heads=4, d_head=8, n_ctx=32, d_vocab=100
)
loss = rllc.losses.distillation(AttentionOnly(small_config).eval())
print(rllc.estimate(model, rows, rllc.heads(model), loss=loss, sampling=sampling))


# %% Your own observable: a function of one moment, measured at every draw; it changes no chain
def share_better(moment: rllc.Moment) -> torch.Tensor:
    """The share of tokens on which a draw does better than w*."""
    better = moment.losses_by_row < moment.baseline_by_row
    return better.flatten(1).double().mean(1)


observe = {"better": rllc.Observable(share_better), "distance": rllc.distance()}
draws = rllc.sample(model, rows, ["0:1", "1:3"], sampling=sampling, observe=observe)
for (weights, _), better, distance in zip(
    draws.names, draws.observed["better"], draws.observed["distance"], strict=True
):
    print(f"{weights}: better on {better.mean():.0%} of tokens, {distance.mean():.1f} from w*")
