"""Against devinterp 2.0.1 on the same model, tokens and settings. Needs ``pip install
devinterp==2.0.1``.

Both use the full batch at every step: devinterp takes its baseline from other minibatches than its
draws, which would
leave an offset that is no error of either. Its trace begins at w*, before the first step, so its
first draw is dropped:
what is left is the states after steps 1 … N, as here.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny import QUIET, tiny_model, tiny_tokens

import rllc
from rllc.statistics.uncertainty import mean_of_draws

pytestmark = pytest.mark.oracle

N_BETA, LR, GAMMA, CHAINS, DRAWS = 60.0, 2e-3, 300.0, 4, 200


def theirs(model: object, tokens: rllc.Tokens, weights: rllc.Weights) -> np.ndarray:
    """devinterp's nβ (loss − loss at w*) ``[chain, draw]`` after steps 1 … N."""
    from datasets import Dataset
    from devinterp.slt.sampling import sample

    dataset = Dataset.from_dict({"input_ids": tokens.rows.tolist()}).with_format("torch")
    masks = {name: mask.float() for name, mask in weights.masks(model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = sample(
            model,
            dataset,
            {},
            lr=LR,
            n_beta=N_BETA,
            localization=GAMMA,
            param_masks=masks,
            num_chains=CHAINS,
            num_draws=DRAWS + 1,
            batch_size=len(tokens),
            num_init_loss_batches=1,
            device="cpu",
        )
    trace = tree.dataset.sampling_loss_micro.values.mean((2, 3), dtype=np.float64)
    baseline = float(tree.dataset.init_loss.values.mean(dtype=np.float64))
    assert np.allclose(trace[:, 0], baseline, atol=1e-5)  # the first is at w*
    return N_BETA * (trace[:, 1:] - baseline)


def fit(model: torch.nn.Module, tokens: rllc.Tokens) -> None:
    """Bring a model near a minimum, where chains relax quickly and errors are small."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(tokens.rows.long(), labels=tokens.rows.long()).loss.backward()
        optimizer.step()
    model.zero_grad()


def test_heads_and_the_whole_model_agree() -> None:
    pytest.importorskip("devinterp")
    model, tokens = tiny_model(positions="standard"), tiny_tokens(num_rows=8)
    fit(model, tokens)
    chosen = [rllc.head("0:0"), rllc.head("1:1"), rllc.everything()]
    sampling = rllc.Sampling(
        num_chains=CHAINS, num_draws=DRAWS, batch_size=len(tokens), start="center", n_beta=N_BETA
    )
    est = rllc.estimate(
        model, tokens, chosen, sampler=rllc.sgld(LR, GAMMA), sampling=sampling, compute=QUIET
    )
    found = []
    for weights in chosen:
        llc = theirs(model, tokens, weights)
        ours, error = est[weights.name], float(mean_of_draws(llc, None).standard_error)
        z = (ours.value - llc.mean()) / np.hypot(ours.standard_error, error)
        found.append((weights.name, ours.value, ours.standard_error, llc.mean(), error, z))
    print(
        "\n".join(
            "{:12} {:8.3f} ± {:.3f}   devinterp {:8.3f} ± {:.3f}   z = {:+.2f}".format(*row)
            for row in found
        )
    )
    assert all(abs(row[-1]) < 4 for row in found)
    values = est.value[:-1]
    assert (
        np.ptp(values) > 8 * est.standard_error[:-1].max()
    )  # heads differ by more than the errors: agreement means something
