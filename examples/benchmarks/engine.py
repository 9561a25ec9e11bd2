"""How fast the sampling engine is: beside an ideal implementation, and beside devinterp 2.0.1 on the same work.

    python examples/benchmarks/engine.py            # 2 CPU cores, below 10 minutes; needs pip install devinterp==2.0.1
    python examples/benchmarks/engine.py --full     # one GPU: the paper's whole estimate of a checkpoint

Prints tables; the folder of ``--out`` gets ``engine.json``, ``growth.csv`` and ``growth.png``. Work is the paper's: SGLD
(ε = 1e-3, γ = 200, nβ = 30) on each of the 16 heads of its two-layer model, 4 chains a head, so 64 runs.

What an ideal implementation must do
------------------------------------
In FLOPs for each position and run, for d_model D, d_head d, H heads (D = Hd), vocabulary V, and T positions that predict
something (a row's last token is predicted, but predicts nothing). A product of [m, k] and [k, n] is 2mkn. Attention is
counted over the full square of positions, as ``torch.utils.flop_counter`` does for every implementation; a causal kernel
does half of it. For a run that moves one head of layer l:

- unembedding: logits 2DV, and their gradient back to the hidden state 2DV; the weights are frozen and have no gradient;
- the head: q, k, v 3·2Dd and their weight gradients 3·2Dd; output 2dD, its weight gradient 2dD, gradient to z 2dD;
  scores and mix 2·2Td; their gradients 4·2Td. Its input is frozen and has no gradient;
- each later layer: q, k, v and output 4·2D², back to the input as much; scores and mix 2·2TD, their gradients 4·2TD;
- the other heads of layer l and what is before layer l are the same for all runs. They and the loss at w* are one
  forward pass a minibatch: L(4·2D² + 2·2TD) + 2DV, divided by the number of runs.

Elementwise work (softmax, LayerNorm, noise) is not counted, here or there.
"""

# %% What is asked for
import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils import flop_counter

import rllc

CHAINS, N_BETA, LR, LOCALIZATION = 4, 30.0, 1e-3, 200.0
SIZES = {"256 × 8": (256, 8), "1024 × 2": (1024, 2)}  # context × batch
AROUND = {"heads": 4, "chains": 1, "context": 256, "batch": 4}
AXES = {
    "heads": [1, 2, 4, 8, 16],
    "chains": [1, 2, 4, 8],
    "context": [64, 128, 256, 512, 1024],
    "batch": [1, 2, 4, 8, 16],
}
PAPER_FLOP, PAPER_PEAK = (
    2.7e15,
    7.9e14,
)  # a checkpoint's unavoidable products; FLOPs a second of an H200 in bfloat16
TARGET = 0.02  # standard error over value
PRECISION_NOTE = """\
    Errors are deviations over 6 seeds, extrapolated by the 1/√ law; devinterp's batches for w* grow in proportion to its
    64 draws × 4 chains. For equal seeds these are the batches of its first draws: with as many as draws it is paired, too.
    That its chains start at w*, which lowers its values by a share that falls with 1/draws, is not counted.
"""


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("rllc-out/engine"), help="output folder")
    parser.add_argument(
        "--checkpoint",
        help="for part (c), the quickstart's .../checkpoints; default: trains a small model",
    )
    parser.add_argument(
        "--parts",
        default="abcde",
        help="which parts, of: a FLOPs, b clock, c precision, d memory, e growth",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="alternations of ours and theirs; medians are of these",
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--full", action="store_true", help="the paper's whole estimate instead, on a GPU"
    )
    parser.add_argument("--device", default="cuda", help="where --full runs")
    parser.add_argument(
        "--memory", nargs=3, metavar=("WHAT", "CONTEXT", "BATCH"), help=argparse.SUPPRESS
    )
    return parser.parse_args(argv)


def main(argv=None):
    args, begin = arguments(argv), time.perf_counter()
    torch.set_num_threads(args.threads)
    if args.memory:
        return print(json.dumps(peak_memory(args.memory[0], *map(int, args.memory[1:]))))
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{machine(args)}\n")
    parts = {"a": flops, "b": clock, "c": precision, "d": memory, "e": growth}
    results = {"machine": machine(args)}
    for letter in "full" if args.full else args.parts:
        part = full if args.full else parts[letter]
        results[part.__name__] = part(args)
        (args.out / "engine.json").write_text(json.dumps(results, indent=1))
        print(f"[{time.perf_counter() - begin:.0f} s so far]\n", flush=True)
        if args.full:
            break
    return results


def machine(args):
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    kinds = f"bfloat16 products: {'yes' if has_bfloat16() else 'no'}"
    return f"{cpu}{gpu}, {args.threads} threads, torch {torch.__version__}, Python {platform.python_version()}, {kinds}"


def has_bfloat16():
    """Whether this CPU multiplies bfloat16 matrices in hardware; without, ``autocast="bfloat16"`` is slower than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# %% The work, ours and theirs
def paper_model():
    """The paper's sizes; weights perturbed so that no LayerNorm or bias is at a value that hides work or errors."""
    torch.manual_seed(0)
    model = rllc.models.AttentionOnly(rllc.models.AttentionOnlyConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def random_tokens(model, context, rows=128):
    return rllc.Tokens(
        torch.randint(
            0, model.config.d_vocab, (rows, context), generator=torch.Generator().manual_seed(0)
        )
    )


def ours(model, tokens, batch, weights=None, chains=CHAINS, **settings):
    """An endless iterator; each ``next`` is one step of all runs."""
    sampling = rllc.Sampling(
        num_chains=chains, num_draws=10**9, batch_size=batch, n_beta=N_BETA, **settings
    )
    weights = rllc.heads(model) if weights is None else weights
    steps = rllc.iterate(
        model, tokens, weights, sampler=rllc.sgld(LR, LOCALIZATION), sampling=sampling
    )
    next(steps)  # its first has the step before, too
    return steps


def theirs(model, tokens, batch, weights, draws, chains=1, init_batches=1, seed=0, when=None):
    """devinterp's public ``sample`` with the loss at w* from ``init_batches``; appends the time of each loss to ``when``."""
    try:
        from devinterp.slt.lm_loss import compute_per_token_loss
        from devinterp.slt.sampling import sample
    except ImportError:
        sys.exit(
            "comparing with devinterp: it is not installed; type: pip install devinterp==2.0.1"
        )
    import datasets

    def loss(module, rows):
        if when is not None:
            when.append(time.perf_counter())
        return compute_per_token_loss(module, rows)

    rows = datasets.Dataset.from_dict(
        {"input_ids": tokens.rows.numpy().astype(np.int64)}
    ).with_format("torch")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        tree = sample(
            model,
            rows,
            {},
            lr=LR,
            n_beta=N_BETA,
            localization=LOCALIZATION,
            param_masks=weights.masks(model),
            num_chains=chains,
            num_draws=draws,
            batch_size=batch,
            num_init_loss_batches=init_batches,
            init_seed=seed,
            device="cpu",
            loss_fn=loss,
            output_path=Path(folder) / "samples.zarr",
        )
        return tree.dataset.load()


def their_seconds(model, tokens, batch, weights, steps):
    """Seconds of each step: from one loss to the next is a forward, a backward, and a step. Their start-up is left out."""
    when = []
    theirs(model, tokens, batch, weights, draws=steps + 1, when=when)
    return np.diff(when[1:]).tolist()


def one_of_each_layer(model):
    """What devinterp does depends on the layer of the head, not on the head."""
    return [rllc.head(f"{layer}:0") for layer in range(model.config.n_layers)]


# %% (a) FLOPs
def ideal_flops(config, context, layer, runs):
    """For each position of a minibatch and run, from the docstring above; the last position does nothing."""
    T, D, d, V, L = context - 1, config.d_model, config.d_head, config.d_vocab, config.n_layers
    unembed = 2 * D * V + 2 * D * V
    head = 6 * (2 * D * d) + 3 * (2 * d * D) + 6 * (2 * T * d)
    later = (L - 1 - layer) * (8 * (2 * D * D) + 6 * (2 * T * D))
    shared = L * (4 * 2 * D * D + 2 * 2 * T * D) + 2 * D * V
    return (unembed + head + later + shared / runs) * T / context


def count(work):
    """Matrix products as ``FlopCounterMode`` counts them, with CPU attention and in-place products added to its list."""

    def attention(q, k, v, *args, out_shape=None, **kwargs):
        return flop_counter.sdpa_flop_count(q, k, v)

    def attention_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
        return flop_counter.sdpa_backward_flop_count(grad, q, k, v)

    aten = torch.ops.aten
    more = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten.addmm_: flop_counter.addmm_flop,
        aten.baddbmm_: flop_counter.baddbmm_flop,
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=more) as counter:
        work()
    return counter.get_total_flops()


def flops(args):
    model, rows, found = paper_model(), [], {}
    runs = CHAINS * len(rllc.heads(model))
    for size, (context, batch) in SIZES.items():
        tokens = random_tokens(model, context)
        steps = ours(model, tokens, batch)
        mine = count(lambda steps=steps: next(steps)) / runs / batch / context
        ideal = statistics.mean(
            ideal_flops(model.config, context, layer, runs)
            for layer in range(model.config.n_layers)
        )
        other = statistics.mean(
            count(lambda w=w, t=tokens, b=batch: theirs(model, t, b, w, draws=3))
            - count(lambda w=w, t=tokens, b=batch: theirs(model, t, b, w, draws=2))
            for w in one_of_each_layer(model)
        )
        other = other / batch / context
        rows.append(
            [
                size,
                mega(ideal),
                mega(mine),
                f"{mine / ideal:.3f}",
                mega(other),
                f"{other / ideal:.2f}",
            ]
        )
        found[size] = {"ideal": ideal, "ours": mine, "devinterp": other}
    columns = ["context × batch", "ideal", "rllc", "/ ideal", "devinterp", "/ ideal"]
    table(
        f"(a) MFLOP for each token, run and step ({runs} runs: all heads, {CHAINS} chains)",
        columns,
        rows,
    )
    return found


# %% (b) Wall clock
def clock(args):
    model, rows, found = paper_model(), [], {}
    runs = CHAINS * len(rllc.heads(model))
    for size, (context, batch) in SIZES.items():
        tokens = random_tokens(model, context)
        kinds = {"float32": ours(model, tokens, batch)}
        if has_bfloat16():
            kinds["bfloat16"] = ours(model, tokens, batch, autocast="bfloat16")
        seconds = {kind: [] for kind in [*kinds, "devinterp"]}
        for _ in range(args.rounds):
            for kind, steps in kinds.items():
                seconds[kind].append(timed(lambda steps=steps: next(steps)) / runs)
            of_layers = [
                their_seconds(model, tokens, batch, w, steps=3) for w in one_of_each_layer(model)
            ]
            seconds["devinterp"].append(statistics.mean(map(statistics.median, of_layers)))
        median = {kind: statistics.median(values) for kind, values in seconds.items()}
        for kind, values in seconds.items():
            speed, ratio = batch * context / median[kind], median["devinterp"] / median[kind]
            spread = f"{1e3 * min(values):.1f}–{1e3 * max(values):.1f}"
            rows.append(
                [size, kind, f"{1e3 * median[kind]:.1f}", spread, f"{speed:,.0f}", f"{ratio:.2f}"]
            )
        found[size] = seconds
    columns = ["context × batch", "", "ms, median", "range", "tokens/s", "× devinterp"]
    table(
        f"(b) Wall clock of a run's step, {args.rounds} alternations, {args.threads} threads each",
        columns,
        rows,
    )
    print(
        f"    Same numbers as run by run through any-module evaluation: {equality(model):.1e} in λ̂, the largest difference."
    )
    return found


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def equality(model):
    """The largest difference in λ̂ of a draw between the engine and the plain loop: next-token loss, one run after another."""
    tokens, some = random_tokens(model, 64, rows=8), ["0:1", "1:6"]
    sampling = rllc.Sampling(num_chains=2, num_draws=5, batch_size=4)

    def plain(module, rows):
        return rllc.next_token(module, rows)

    fast, slow = (
        rllc.sample(model, tokens, some, loss=f, sampling=sampling, progress=False)
        for f in (None, plain)
    )
    return float(abs(fast.llc - slow.llc).max())


# %% (c) Seconds to a standard error
def precision(args):
    """Both by one ruler: the standard deviation over seeds, and seconds at it times (error / target)²."""
    model, tokens = trained(args)
    batch, layers = 8, model.config.n_layers
    values, reported, each = our_repeats(model, tokens, batch)
    llc = values.mean(0)
    mine = values.std(0, ddof=1) / llc
    by_layer = np.sqrt(
        (mine.reshape(layers, -1) ** 2).mean(1)
    )  # heads of a layer are alike, and 6 seeds are few
    told = np.sqrt((reported**2).mean(0)) / llc
    needed = each * (by_layer.max() / TARGET) ** 2
    found = {
        "llc": llc.tolist(),
        "ours": [needed, each, by_layer.tolist()],
        "reported": told.tolist(),
    }
    rows = [
        ["rllc", f"{needed:,.0f}", "1", f"{by_layer.max():.3f}", f"{each:.1f}"],
        [
            "by its own error",
            f"{each * (told.max() / TARGET) ** 2:,.0f}",
            "",
            f"{told.max():.3f}",
            f"{each:.1f}",
        ],
    ]
    for init in (16, 64):
        seconds, relative, of_heads = their_precision(model, tokens, batch, llc, init)
        name = f"devinterp, w* from {init} batches"
        rows.append(
            [
                name,
                f"{seconds:,.0f}",
                f"{seconds / needed:.1f}",
                f"{relative:.3f}",
                f"{of_heads:.1f}",
            ]
        )
        found[name] = [seconds, of_heads, relative]
    columns = ["", "seconds needed", "× rllc", "worst error / value, as run", "seconds, as run"]
    title = f"(c) Seconds until every head's error is below {TARGET:.0%} of its wrLLC (trained, {len(llc)} heads, batch {batch})"
    table(title, columns, rows)
    print(
        "    " + "  ".join(f"{w.name} {v:.2f}" for w, v in zip(rllc.heads(model), llc, strict=True))
    )
    print(PRECISION_NOTE)
    return found


def trained(args):
    """A small trained model and its tokens: ``--checkpoint``, or one trained here, once."""
    texts = rllc.data.python_corpus(max_bytes=2_000_000)
    documents = [text for subset in texts.values() for text in subset]
    if args.checkpoint:
        folder = Path(args.checkpoint)
        model = rllc.load(folder)
        tokenizer = rllc.data.load_tokenizer(folder.parent / "tokenizer")
        return model, rllc.data.mix(
            "python", rllc.data.tokenize(documents, tokenizer, model.config.n_ctx)
        )
    tokenizer, context = rllc.data.train_tokenizer(documents, vocab_size=1000), 128
    tokens = rllc.data.mix(
        "python", rllc.data.tokenize(documents, tokenizer, context)
    )  # rows shuffled
    config = rllc.models.AttentionOnlyConfig(
        n_layers=2, d_model=64, n_heads=4, d_head=16, n_ctx=context, d_vocab=1000
    )
    start = time.perf_counter()
    model = rllc.train(
        config,
        tokens,
        args.out / "trained",
        training=rllc.Training(num_steps=1500, batch_size=32, lr=2e-3),
        progress=False,
    )
    print(f"trained a small model on {tokens} in {time.perf_counter() - start:.0f} s")
    return model, tokens


def our_repeats(model, tokens, batch, seeds=6, draws=100):
    """Values and reported errors ``[seed, head]``, and the seconds of one seed."""
    estimates, start = [], time.perf_counter()
    for seed in range(seeds):
        sampling = rllc.Sampling(num_draws=draws, batch_size=batch, seed=seed, start="gaussian")
        estimates.append(
            rllc.estimate(model, tokens, rllc.heads(model), sampling=sampling, progress=False)
        )
    each = (time.perf_counter() - start) / seeds
    return (
        np.stack([e.value for e in estimates]),
        np.stack([e.standard_error for e in estimates]),
        each,
    )


def their_precision(model, tokens, batch, llc, init, draws=64, seeds=6):
    """Seconds needed for all heads, the worst error over value, and the seconds of one seed of all heads, as run."""
    needed, worst, of_heads = 0.0, 0.0, 0.0
    for weights, values in zip(
        one_of_each_layer(model), llc.reshape(model.config.n_layers, -1), strict=True
    ):
        start, repeats = time.perf_counter(), []
        for seed in range(seeds):
            found = theirs(
                model,
                tokens,
                batch,
                weights,
                draws,
                chains=CHAINS,
                init_batches=init,
                seed=1000 * seed,
            )
            repeats.append(
                N_BETA * float(found.sampling_loss_micro.mean() - found.init_loss.mean())
            )  # its compute_llc
        each = (time.perf_counter() - start) / seeds
        relative = np.std(repeats, ddof=1) / values
        needed += float((each * (relative / TARGET) ** 2).sum())
        worst, of_heads = max(worst, float(relative.max())), of_heads + each * len(values)
    return needed, worst, of_heads


# %% (d) Memory
def memory(args):
    rows, found = [], {}
    cases = {
        "devinterp, 1 head × 4 chains": "theirs",
        "rllc, 1 head × 4 chains": "4",
        "rllc, 64 runs, passes of 8": "8",
        "rllc, 64 runs, default": "default",
        "rllc, 64 runs, at once in each layer": "32",
    }
    for size, (context, batch) in SIZES.items():
        for name, what in cases.items():
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(args.threads),
                "--memory",
                what,
                str(context),
                str(batch),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[f"{size}, {name}"] = peak = json.loads(done.stdout.splitlines()[-1])
            rows.append([size, name, f"{peak['work']:,.0f}", f"{peak['peak']:,.0f}"])
    table(
        "(d) Peak resident memory, MiB",
        ["context × batch", "", "of the work", "with imports and model"],
        rows,
    )
    return found


def peak_memory(what, context, batch):
    """In a process of its own: resident memory with everything loaded, and the peak over two evaluations of each run or more."""
    model = paper_model()
    tokens = random_tokens(model, context)
    if what == "theirs":
        import devinterp.slt.sampling  # noqa: F401 (not counted)
    before = resident("VmRSS")
    if what == "theirs":
        theirs(model, tokens, batch, rllc.head("0:0"), draws=3, chains=CHAINS)
    else:
        weights = [rllc.head("0:0")] if what == "4" else None
        ours(
            model, tokens, batch, weights, runs_per_pass=None if what == "default" else int(what)
        )  # two evaluations
    return {"before": before, "peak": resident("VmHWM"), "work": resident("VmHWM") - before}


def resident(field):
    """MiB. On Linux from /proc, because a child's ``ru_maxrss`` starts at its parent's; elsewhere the peak so far."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(
                int(line.split()[1])
                for line in status.read_text().splitlines()
                if line.startswith(field)
            )
            / 1024
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 1024
    )


# %% (e) Growth
def growth(args):
    """One axis at a time around 4 heads of each layer × 1 chain, context 256, batch 4."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    model, around = paper_model(), AROUND
    rows, lines = [], ["axis,value,seconds_per_step"]
    figure, panels = plt.subplots(1, 4, figsize=(12, 3), sharey=True, layout="constrained")
    found = {}
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        seconds = [seconds_of_step(model, **(around | {axis: value})) for value in values]
        slope = np.polyfit(np.log(values), np.log(seconds), 1)[0]
        found[axis] = {"values": values, "seconds": seconds, "slope": slope}
        lines += [f"{axis},{value},{s:.5f}" for value, s in zip(values, seconds, strict=True)]
        rows.append(
            [
                axis,
                "  ".join(f"{v}: {1e3 * s:.0f}" for v, s in zip(values, seconds, strict=True)),
                f"{slope:.2f}",
            ]
        )
        panel.loglog(values, seconds, "o-", color="C0")
        panel.loglog(values, [seconds[0] * v / values[0] for v in values], ":", color="0.5")
        panel.set(xlabel=f"{axis} (slope {slope:.2f})", xticks=values)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
    panels[0].set_ylabel("seconds a step (dotted: linear)")
    figure.savefig(args.out / "growth.png", dpi=150)
    (args.out / "growth.csv").write_text("\n".join(lines) + "\n")
    others = ", ".join(f"{k} {v}" for k, v in around.items())
    table(
        f"(e) How a step's cost grows; else {others}", ["axis", "value: ms", "slope, log-log"], rows
    )
    print(f"    figure: {args.out / 'growth.png'}")
    return found


def seconds_of_step(model, heads, chains, context, batch):
    order = [
        rllc.head(f"{layer}:{head}") for head, layer in itertools.product(range(8), range(2))
    ]  # layers in turn
    steps = ours(model, random_tokens(model, context, rows=32), batch, order[:heads], chains)
    return statistics.median(timed(lambda: next(steps)) for _ in range(3))


# %% --full: the paper's estimate of one checkpoint
def full(args, draws=200, context=1024, batch=32):
    """All 16 heads × 4 chains × 200 draws at 32 × 1024 tokens in bfloat16."""
    model = paper_model().to(args.device)
    tokens = random_tokens(model, context, rows=1024)
    weights = rllc.heads(model)
    on_gpu = args.device.startswith("cuda")

    def work(draws):
        sampling = rllc.Sampling(
            num_chains=CHAINS, num_draws=draws, batch_size=batch, autocast="bfloat16"
        )
        rllc.estimate(model, tokens, weights, sampling=sampling, progress=False)
        if on_gpu:
            torch.cuda.synchronize()

    work(3)  # kernels are chosen and memory is got here
    seconds = timed(lambda: work(draws))
    runs = CHAINS * len(weights)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    speed = runs * (draws + 1) * batch * context / seconds
    fraction = PAPER_FLOP / PAPER_PEAK / seconds
    row = [f"{seconds:.1f}", f"{speed:,.0f}", f"{fraction:.1%}", f"{peak:.1f}"]
    columns = ["seconds", "tokens/s (over all runs)", "of the roofline", "peak GiB"]
    title = f"One checkpoint: {len(weights)} heads × {CHAINS} chains × {draws} draws, {batch} × {context} tokens, bfloat16"
    table(title, columns, [row])
    print(
        f"    roofline: {PAPER_FLOP:.1e} FLOP of unavoidable products at {PAPER_PEAK:.1e} a second (H200, dense)"
    )
    return {"seconds": seconds, "tokens_per_second": speed, "fraction": fraction, "peak_gib": peak}


# %% Tables
def mega(flop):
    return f"{flop / 1e6:.2f}"


def table(title, columns, rows):
    widths = [max(len(str(row[k])) for row in [columns, *rows]) for k in range(len(columns))]
    print(title)
    for row in [columns, *rows]:
        print(
            "    " + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        )
    print(flush=True)


if __name__ == "__main__":
    main()
