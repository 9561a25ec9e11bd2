"""Follow refined LLCs in a training loop of your own: call a Tracker with the step and the model.

The model here is a plain torch module, on data that needs no download. Yours can be anything.
"""

# %% A model and data: a two-layer linear network learns a matrix of rank 2
import sys

import torch
from torch import nn

import rllc

tiny = "--tiny" in sys.argv
num_steps = 20 if tiny else 600
num_draws = 10 if tiny else 200

torch.manual_seed(0)
teacher = torch.randn(8, 2) @ torch.randn(2, 8) / 4
inputs = torch.randn(512, 8)
targets = inputs @ teacher.T + 0.1 * torch.randn(512, 8)
model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False))


def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """One number an example: [batch]."""
    x, y = batch
    return ((module(x) - y) ** 2).sum(-1) / 2


# %% The tracker: which weights, which data, at which steps
weights = {
    "all": rllc.everything(),
    "first layer": rllc.parameters("0.weight"),
    "second layer": rllc.parameters("1.weight"),
}
sampling = rllc.Sampling(
    num_draws=num_draws,
    num_burnin_steps=num_draws // 2,
    batch_size=128,
    n_beta=512 / 6.2,  # n / log n: the WBIC temperature
)
tracker = rllc.Tracker(
    (inputs, targets),
    weights,
    loss=loss,
    sampler=rllc.sgld(lr=2e-3, localization=1.0),
    sampling=sampling,
    at_steps=range(0, num_steps + 1, num_steps // 4),
)

# %% Your loop, with one more line
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(num_steps + 1):
    tracker(step, model)
    optimizer.zero_grad()
    loss(model, (inputs, targets)).mean().backward()
    optimizer.step()

# %% The result: [checkpoint, refinement], as a table, a file or a figure
columns = ["step", "weights", "llc", "standard_error", "rhat", "status"]
table = tracker.trajectory.to_dataframe()[columns]
print(table.to_string(index=False, float_format="{:.3f}".format))
