"""The heads of a layer of GPT-2 small, all at once: beside plain autograd and devinterp 2.0.1.

    python -m examples.benchmarks.any_model           # 2 CPU cores, below 8 minutes

Run it in the folder of the repository; it needs devinterp==2.0.1. Weights and tokens are random,
2 rows of 128 tokens a minibatch. A run is one chain of one head: its q, k, v and o, in the layers
0, 6 and 11. What is printed is of a run's step:

- GFLOP, beside the least that is needed when no moved weight reaches the blocks
  before a head's own: forward and backward through the blocks behind it and the unembedding
  (the same minibatch's share, once for all runs, is left out);
- seconds, in turn with each other: of rllc with all heads of a layer; of plain autograd, which runs
  the whole model forward, and back to the head; and of devinterp;
- peak memory, each in a process of its own: rllc with all heads, devinterp with one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import rllc
from examples.benchmarks.engine.flops import count
from examples.benchmarks.engine.memory import resident
from examples.benchmarks.engine.tables import machine, table
from examples.benchmarks.engine.work import LOCALIZATION, LR, N_BETA, their_seconds, theirs, timed
from rllc.engine.bind import bind
from rllc.engine.layout import center, groups


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.any_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default="abc", help="of: a FLOPs, b clock, c memory")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 6, 11])
    parser.add_argument("--heads", type=int, default=12, help="of the model, and how many move")
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure what is asked for; returns it by name."""
    begin = time.perf_counter()
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    if args.case:
        print(json.dumps(peak_memory(args)))
        return {}
    print(f"{machine(args.threads)}\n")
    results: dict[str, Any] = {}
    model, tokens = made(args)
    if "a" in args.parts:
        results["flops"] = measure_flops(args, model, tokens)
    if "b" in args.parts:
        results["seconds"] = measure_seconds(args, model, tokens)
    del model
    if "c" in args.parts:
        results["memory"] = measure_memory(args)
    print(f"[{time.perf_counter() - begin:.0f} s]")
    return results


# %% The work
def made(args: argparse.Namespace) -> tuple[Any, rllc.Tokens]:
    """A model of random weights, and random tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=args.blocks,
        n_head=args.heads,
        n_embd=args.d_model,
        vocab_size=args.vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    rows = torch.randint(args.vocabulary, (8 * args.batch, args.context))
    return model, rllc.Tokens(rows)


def head(args: argparse.Namespace, layer: int, number: int) -> rllc.Weights:
    """A head of GPT-2, whose q, k and v lie side by side."""
    width = args.d_model // args.heads
    own = range(number * width, (number + 1) * width)
    columns = [part * args.d_model + column for part in range(3) for column in own]
    attention = f"transformer.h.{layer}.attn"
    weights = rllc.parameters(f"{attention}.c_attn.weight", index=(slice(None), columns))
    weights |= rllc.parameters(f"{attention}.c_attn.bias", index=columns)
    weights |= rllc.parameters(f"{attention}.c_proj.weight", index=list(own))
    return weights.named(f"{layer}:{number}")


def ours(
    args: argparse.Namespace, model: Any, tokens: rllc.Tokens, layer: int, num_heads: int
) -> Iterator[Any]:
    """An endless iterator; each ``next`` is one step of one chain of each head."""
    sampling = rllc.Sampling(
        num_chains=1,
        num_draws=10**9,
        batch_size=args.batch,
        n_beta=N_BETA,
        start="center",
        num_probes=0,
        control_variate=False,
    )
    steps = rllc.iterate(
        model,
        tokens,
        [head(args, layer, number) for number in range(num_heads)],
        sampler=rllc.sgld(LR, LOCALIZATION),
        sampling=sampling,
        compute=rllc.Compute(progress=False),
    )
    # The first step comes with the one before it, and with the trial.
    next(steps)
    return steps


def plain(args: argparse.Namespace, model: Any, tokens: rllc.Tokens, layer: int) -> None:
    """One SGLD step of the layer's first head, the rest of the model being frozen."""
    masks = head(args, layer, 0).masks(model)
    batch = tokens.rows[: args.batch].long()
    moved = {name: model.get_parameter(name).detach().clone() for name in masks}
    for values in moved.values():
        values.requires_grad_()
    frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}
    output = torch.func.functional_call(model, frozen | moved, (batch,))
    logits = output.logits[:, :-1].flatten(0, 1)
    loss = F.cross_entropy(logits, batch[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(moved.values()))
    with torch.no_grad():
        for (name, values), gradient in zip(moved.items(), gradients, strict=True):
            drift = N_BETA * gradient + LOCALIZATION * (values - frozen[name])
            noise = LR**0.5 * torch.randn_like(values)
            values += (noise - LR / 2 * drift) * masks[name]


# %% (a) FLOPs
def measure_flops(args: argparse.Namespace, model: Any, tokens: rllc.Tokens) -> dict[int, Any]:
    """GFLOP of a run's step, by layer."""
    results = {}
    rows = []
    for layer in args.layers:
        counted = {
            "least": least_flops(args, layer),
            "ours": run_flops(args, model, tokens, layer),
            "plain": count(partial(plain, args, model, tokens, layer)),
        }
        results[layer] = counted
        shown = [f"{number / 1e9:.1f}" for number in counted.values()]
        rows.append([layer, *shown, f"{counted['ours'] / counted['least']:.3f}"])
    table("(a) GFLOP of a run's step", ["layer", *counted, "ours / least"], rows)
    return results


def run_flops(args: argparse.Namespace, model: Any, tokens: rllc.Tokens, layer: int) -> int:
    """Of one run with its gradient; the unmoved model on the minibatch is there already."""
    batch = tokens.rows[: args.batch].long()
    (group,) = groups([head(args, layer, 0).masks(model)])
    bound = bind(model, None)
    at = bound.center(batch, seed=0)
    position = center(group, dict(model.named_parameters()))
    member = torch.tensor([0])

    def evaluate() -> None:
        bound.runs(group, member, position, at, batch, gradient=True, each=False)

    evaluate()  # after the trial
    evaluate()  # and after the comparison with a run alone, which comes at calls 2, 4, 8 and so on
    return count(evaluate)


def least_flops(args: argparse.Namespace, layer: int) -> float:
    """Products of weights: forward and back, but into no input of the head and no frozen weight.

    A block has 12 D² weights: 4 D² of attention, 8 D² of its MLP. The head's own block has no
    backward pass through q, k and v.
    """
    D = args.d_model
    unembedding = 4 * D * args.vocabulary
    own_block = 2 * 2 * 8 * D**2 + 2 * 4 * D**2 + 2 * D**2
    later_blocks = (args.blocks - 1 - layer) * 2 * 2 * 12 * D**2
    return float(args.batch * args.context * (unembedding + own_block + later_blocks))


# %% (b) The clock
def measure_seconds(
    args: argparse.Namespace, model: Any, tokens: rllc.Tokens
) -> dict[str, dict[int, float]]:
    """Seconds of a run's step, by library and layer."""
    medians: dict[str, dict[int, float]] = {}
    for layer in args.layers:
        works: dict[str, Callable[[], float]] = {
            "rllc": partial(of_rllc, args, ours(args, model, tokens, layer, args.heads)),
            "autograd": partial(timed, partial(plain, args, model, tokens, layer)),
            "devinterp": partial(of_devinterp, args, model, tokens, layer),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                seconds[name].append(work())
        for name, measured in seconds.items():
            medians.setdefault(name, {})[layer] = statistics.median(measured)
    mean_of_rllc = statistics.mean(medians["rllc"].values())
    rows = []
    for name, by_layer in medians.items():
        mean = statistics.mean(by_layer.values())
        shown = [f"{1e3 * second:.0f}" for second in by_layer.values()]
        rows.append([name, *shown, f"{1e3 * mean:.0f}", f"{mean / mean_of_rllc:.2f}"])
    columns = ["", *(f"layer {layer}" for layer in args.layers), "mean", "× rllc"]
    title = f"(b) Milliseconds of a run's step, median of {args.rounds}, {args.threads} threads"
    table(title, columns, rows)
    return medians


def of_rllc(args: argparse.Namespace, steps: Iterator[Any]) -> float:
    return timed(partial(next, steps)) / args.heads


def of_devinterp(args: argparse.Namespace, model: Any, tokens: rllc.Tokens, layer: int) -> float:
    weights = head(args, layer, 0)
    return statistics.median(their_seconds(model, tokens, args.batch, weights, steps=2))


# %% (c) Memory
def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """MiB at most beyond those with everything loaded, in a process for each case."""
    options = []
    for name in ("heads", "d_model", "blocks", "vocabulary", "context", "batch", "threads"):
        options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    layers = ["--layers", str(args.layers[0])]
    results = {}
    for case in ("rllc", "devinterp"):
        command = [sys.executable, "-m", "examples.benchmarks.any_model", "--case", case]
        printed = subprocess.run(
            [*command, *options, *layers], capture_output=True, text=True, check=True
        ).stdout
        results[case] = float(json.loads(printed.splitlines()[-1]))
    rows = [[case, f"{peak:,.0f}"] for case, peak in results.items()]
    title = f"(c) Peak of the work, MiB: all heads of layer {args.layers[0]}, and devinterp's one"
    table(title, ["", "MiB"], rows)
    return results


def peak_memory(args: argparse.Namespace) -> float:
    model, tokens = made(args)
    if args.case == "devinterp":
        import devinterp.slt.sampling  # noqa: F401 (not counted)
    before = resident("VmRSS")
    if args.case == "devinterp":
        theirs(model, tokens, args.batch, head(args, args.layers[0], 0), draws=2)
    else:
        next(ours(args, model, tokens, args.layers[0], args.heads))
    return resident("VmHWM") - before


if __name__ == "__main__":
    main()
