"""Refine to weights, data and losses of your own: each is an argument, in ten lines or fewer."""

# %% A model and rows of tokens, made up so that this runs anywhere
import sys

import torch
import torch.nn.functional as F
from torch import nn

import rllc

draws = 5 if "--tiny" in sys.argv else 100
torch.manual_seed(0)
model = rllc.models.AttentionOnly(
    rllc.models.AttentionOnlyConfig(d_model=32, n_heads=4, d_head=8, n_ctx=32, d_vocab=100)
).eval()
rows = torch.randint(0, 100, (256, 32))
sampling = rllc.Sampling(num_draws=draws, batch_size=16)

# %% Your own weights: compose what there is, take slices by name, or give boolean masks
value_side = (rllc.parameters("*.W_V", index=2) | rllc.parameters("*.W_O", index=2)).named(
    "V and O of heads 2"
)
circuit = (rllc.head("0:1") | rllc.head("1:3")).named("0:1 and 1:3")
large = rllc.masks(
    {name: p.abs() > p.abs().median() for name, p in model.named_parameters()}, "large weights"
)
print(value_side.describe(model))
print(rllc.estimate(model, rows, [value_side, circuit, large], sampling=sampling))

# %% Your own data: any rows, named; here those in which some token comes twice in a row
doubled = (rows[:, 1:] == rows[:, :-1]).any(1)
data = {"all": rows, "with doubles": rllc.Tokens(rows[doubled], name="with doubles")}
print(rllc.estimate(model, data, "1:3", sampling=sampling))


# %% Your own loss: one number a row or a token; here only the second half of each row counts
def second_half(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits = module(batch).logits[:, 15:-1]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 16:].flatten(), reduction="none").view(
        len(batch), -1
    )


print(rllc.estimate(model, rows, ["0:1", "1:3"], loss=second_half, sampling=sampling))

# %% Another model's predictions as the data: what a one-layer model of the same text would say
one_layer = rllc.models.AttentionOnly(
    rllc.models.AttentionOnlyConfig(
        n_layers=1, d_model=32, n_heads=4, d_head=8, n_ctx=32, d_vocab=100
    )
).eval()
print(
    rllc.estimate(
        model, rows, rllc.heads(model), loss=rllc.distillation(one_layer), sampling=sampling
    )
)
