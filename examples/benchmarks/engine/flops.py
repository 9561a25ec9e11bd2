"""(a) FLOPs, against the least that an implementation must do that unembeds the hidden state.

In FLOPs for each position and run, for d_model D, d_head d, H heads (D = Hd), vocabulary V, and T
positions that predict something (a row's last token is predicted, but predicts nothing). A product
of [m, k] and [k, n] is 2mkn. Attention is counted over the full square of positions, as
``torch.utils.flop_counter`` does for every implementation; a causal kernel does half of it. For a
run that moves one head of layer l:

- unembedding: logits 2DV, and their gradient back to the hidden state 2DV; the weights are frozen
  and have no gradient. Where heads of the last block move, what they write can be unembedded alone
  (:mod:`rllc.engine.last_heads`), so that less than this is possible;
- the head: q, k, v 3·2Dd and their weight gradients 3·2Dd; output 2dD, its weight gradient 2dD,
  gradient to z 2dD; scores and mix 2·2Td; their gradients 4·2Td. Its input is frozen and has no
  gradient;
- each later layer: q, k, v and output 4·2D², back to the input as much; scores and mix 2·2TD,
  their gradients 4·2TD;
- the other heads of layer l and what is before layer l are the same for all runs. They and the loss
  at w* are one forward pass a minibatch: L(4·2D² + 2·2TD) + 2DV, divided by the number of runs.

Elementwise work (softmax, LayerNorm, noise) is not counted.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

import rllc

from .tables import table
from .work import CHAINS, SIZES, one_of_each_layer, ours, paper_model, random_tokens, theirs


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """FLOPs for each token, run and step."""
    model = paper_model()
    num_runs = CHAINS * len(rllc.heads(model))
    results = {}
    rows = []
    for size, (context, batch) in SIZES.items():
        tokens = random_tokens(model, context)
        steps = ours(model, tokens, batch)
        num_tokens = batch * context
        of_rllc = count(partial(next, steps)) / num_runs / num_tokens
        ideal = statistics.mean(
            ideal_flops(model.config, context, layer, num_runs)
            for layer in range(model.config.n_layers)
        )
        of_devinterp = statistics.mean(
            flops_of_their_step(model, tokens, batch, weights) / num_tokens
            for weights in one_of_each_layer(model)
        )
        results[size] = {"ideal": ideal, "ours": of_rllc, "devinterp": of_devinterp}
        rows.append(
            [
                size,
                f"{ideal / 1e6:.2f}",
                f"{of_rllc / 1e6:.2f}",
                f"{of_rllc / ideal:.3f}",
                f"{of_devinterp / 1e6:.2f}",
                f"{of_devinterp / ideal:.2f}",
            ]
        )
    columns = ["context × batch", "ideal", "rllc", "/ ideal", "devinterp", "/ ideal"]
    title = f"(a) MFLOP for each token, run and step ({num_runs} runs: all heads, {CHAINS} chains)"
    table(title, columns, rows)
    return results


def ideal_flops(config: Any, context: int, layer: int, num_runs: int) -> float:
    """For each position of a minibatch and run; the last position does nothing."""
    T = context - 1
    D, d, V, L = config.d_model, config.d_head, config.d_vocab, config.n_layers
    unembedding = 2 * D * V + 2 * D * V
    head = 6 * (2 * D * d) + 3 * (2 * d * D) + 6 * (2 * T * d)
    later_layer = 8 * (2 * D * D) + 6 * (2 * T * D)
    shared = L * (4 * 2 * D * D + 2 * 2 * T * D) + 2 * D * V
    of_run = unembedding + head + (L - 1 - layer) * later_layer
    return float((of_run + shared / num_runs) * T / context)


def flops_of_their_step(
    model: Any, tokens: rllc.Tokens, batch: int, weights: rllc.Weights
) -> float:
    """What one draw more costs."""
    three = count(lambda: theirs(model, tokens, batch, weights, draws=3))
    two = count(lambda: theirs(model, tokens, batch, weights, draws=2))
    return three - two


def count(work: Callable[[], object]) -> int:
    """Matrix products, of CPU attention and in place too, which torch's counter leaves out."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
        return int(flop_counter.sdpa_flop_count(q, k, v))

    def attention_backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> int:
        return int(flop_counter.sdpa_backward_flop_count(grad, q, k, v))

    def product(out: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
        """2mkn of each matrix of a batch, from the shapes."""
        return 2 * math.prod(left) * int(right[-1])

    aten = torch.ops.aten
    left_out = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten.addmm_: product,
        aten.baddbmm_: product,
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=left_out) as counter:
        work()
    return int(counter.get_total_flops())
