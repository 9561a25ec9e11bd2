"""From text to figure: a transformer forms an induction head, and its heads' refined LLCs part.

    python examples/quickstart.py                      # text that every Python has; no download
    python examples/quickstart.py --data train.jsonl.zst --subsets Github "Wikipedia (en)"
    python examples/quickstart.py --full --data …      # the paper's configuration; for a GPU

Writes to the output folder: checkpoints, tokenizer, `trajectory.npz`, `estimate.csv` and figures.
Interrupted, the same command goes on where it stopped.
"""

# %% What is asked for
import argparse
import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F

import rllc
from rllc.analysis import attention, classify, tokens_in_context
from rllc.errors import FileError
from rllc.models import AttentionOnlyConfig, average


@dataclass(frozen=True)
class Scale:
    """Model, training and sampling. LLCs are measured on the first ``positions`` of each row."""

    config: AttentionOnlyConfig
    training: rllc.Training
    sampling: rllc.Sampling
    sampler: rllc.samplers.Sampler
    positions: int
    num_checkpoints: int
    characters: int
    """Of each subset, at most."""
    window: tuple[float, ...] = ()
    """Shares of a step at which weights are kept as well, to be averaged with those of the step."""


LIMITS = rllc.Limits(max_imprecision=0.4)
"""For curves over training ± 40 % at 95 % will do: values grow fivefold."""


SMALL = Scale(
    AttentionOnlyConfig.fast(),
    rllc.Training.fast(),
    # At the paper's n_beta of 30 all heads of so small a model look like the prior alone. With this
    # lr chains last 4 relaxation times of the flattest direction.
    rllc.Sampling(
        num_chains=3,
        num_draws=32,
        num_burnin_steps=8,
        num_steps_bw_draws=2,
        batch_size=4,
        n_beta=6000.0,
        num_probes=2,
        start="gaussian",
        control_variate=True,
    ),
    rllc.sgld(lr=2.75e-4, localization=200.0),
    positions=128,
    num_checkpoints=8,
    characters=8_000_000,
    window=(0.92, 0.94, 0.96, 0.98),
)
FULL = Scale(
    AttentionOnlyConfig(),
    rllc.Training(),
    rllc.Sampling(start="gaussian", control_variate=True),
    rllc.sgld(),
    positions=1024,
    num_checkpoints=107,
    characters=800_000_000,
)
TINY = Scale(
    AttentionOnlyConfig.fast(d_model=8, n_heads=2, d_head=4, n_ctx=32, d_vocab=300),
    rllc.Training.fast(num_steps=4, batch_size=4),
    replace(SMALL.sampling, num_chains=2, num_draws=4, batch_size=4, num_burnin_steps=2),
    SMALL.sampler,
    positions=16,
    num_checkpoints=3,
    characters=100_000,
    window=(0.5,),
)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="Pile files (.jsonl.zst, .jsonl), a URL or a hub data set")
    parser.add_argument("--subsets", nargs="+", default=["Github", "Wikipedia (en)"])
    parser.add_argument("--out", type=Path, default=Path("rllc-out/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    parser.add_argument("--full", action="store_true", help="the paper's configuration")
    parser.add_argument("--tiny", action="store_true", help="seconds, to try that all works")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


# %% Text, tokenizer and rows of tokens: one named data set a subset
def read(args: argparse.Namespace, scale: Scale) -> dict[str, rllc.Tokens]:
    if args.data is None:
        texts = rllc.data.python_corpus(max_bytes=scale.characters)
    else:
        texts = {}
        for name in args.subsets:
            documents = rllc.data.pile_texts(name, source=args.data)
            texts[name] = list(first_characters(documents, scale.characters))
    folder = args.out / "tokenizer"
    if not folder.exists():
        every_text = itertools.chain.from_iterable(texts.values())
        tokenizer = rllc.data.train_tokenizer(every_text, vocab_size=scale.config.d_vocab)
        tokenizer.save_pretrained(folder)
    tokenizer = rllc.data.load_tokenizer(folder)
    return {
        name: rllc.data.tokenize(documents, tokenizer, scale.config.n_ctx, name=name)
        for name, documents in texts.items()
    }


def first_characters(documents: Iterable[str], count: int) -> Iterator[str]:
    for document in documents:
        if count <= 0:
            return
        yield document
        count -= len(document)


def balanced(subsets: dict[str, rllc.Tokens], seed: int) -> rllc.Tokens:
    """As many rows of each subset; rows of small subsets come several times."""
    most = max(len(rows) for rows in subsets.values())
    parts = [rows[torch.arange(most) % len(rows)] for rows in subsets.values()]
    return rllc.data.mix("all", *parts, seed=seed)


def first_positions(rows: rllc.Tokens, count: int) -> rllc.Tokens:
    return rllc.Tokens(rows.rows[:, :count], rows.name)


def repeated_text(rows: rllc.Tokens, positions: int) -> rllc.Tokens:
    """Each row begins with its first token, then has the same segment of text twice."""
    length = (positions - 1) // 2
    first, segment = rows.rows[:, :1], rows.rows[:, 1 : 1 + length]
    return rllc.Tokens(torch.cat([first, segment, segment], dim=1), "repeated")


# %% The circuit: how much better the model predicts what it has seen before
@torch.no_grad()
def gain_on_second_copy(model: torch.nn.Module, repeated: rllc.Tokens) -> float:
    """Mean loss on the first copy less that on the second, in nats per token.

    Without the first token of each copy, which nothing announces.
    """
    rows = repeated.rows[:32].long().to(model.device)
    logits = model(rows).logits[:, :-1]
    loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    length = len(loss) // 2
    return float(loss[1:length].mean() - loss[length + 1 :].mean())


def follow_circuit(
    checkpoints: list[rllc.models.Checkpoint], text: rllc.Tokens, device: str | None
) -> dict[str, np.ndarray]:
    """What an induction circuit does, over training."""
    bos = int(text.rows[0, 0])
    columns: dict[str, list[float]] = {
        "step": [],
        "gain on random tokens": [],
        "gain on text": [],
        "previous token": [],
        "prefix matching": [],
    }
    for checkpoint in checkpoints:
        model = rllc.load(checkpoint, device=device)
        random_tokens = attention.repeated_rows(model, num_rows=32, bos=bos)
        scores = attention.scores(model, random_tokens)
        columns["step"].append(checkpoint.step)
        columns["gain on random tokens"].append(gain_on_second_copy(model, random_tokens))
        columns["gain on text"].append(gain_on_second_copy(model, text))
        columns["previous token"].append(float(scores.previous_token.max()))
        columns["prefix matching"].append(float(scores.prefix_matching.max()))
    return {name: np.array(values) for name, values in columns.items()}


def step_of_formation(circuit: dict[str, np.ndarray]) -> int | None:
    """The first checkpoint with half of the last one's gain on random tokens.

    ``None`` where the last gain is below 0.2 nats: then no circuit has formed.
    """
    gain = circuit["gain on random tokens"]
    if gain[-1] < 0.2:
        return None
    return int(circuit["step"][np.argmax(gain >= gain[-1] / 2)])


# %% Sampling
def sweep(
    models: list[tuple[int, torch.nn.Module]],
    data: dict[str, rllc.Tokens],
    scale: Scale,
    args: argparse.Namespace,
    executor: int | None,
) -> rllc.Trajectory:
    return rllc.track(
        models,
        data,
        rllc.heads,
        sampler=scale.sampler,
        sampling=replace(scale.sampling, seed=args.seed),
        limits=LIMITS,
        store=args.out / "sweep",
        compute=rllc.Compute(device=args.device, executor=executor, progress=not args.quiet),
    )


def sample_what_is_saved(
    steps: list[int], rows: rllc.Tokens, scale: Scale, args: argparse.Namespace
) -> None:
    """In a process beside the training: sample each of these steps once its weights are there."""
    torch.set_num_threads(1)
    quiet = argparse.Namespace(**{**vars(args), "quiet": True})
    training = multiprocessing.parent_process()
    for step in steps:
        wanted = steps_of_window(step, scale.window)
        saved: dict[int, rllc.models.Checkpoint] = {}
        while not saved.keys() >= set(wanted):
            if training is not None and not training.is_alive():
                return  # it was killed: what is missing will never come
            time.sleep(1)
            with contextlib.suppress(FileError):  # before the first is there
                saved = {kept.step: kept for kept in rllc.checkpoints(args.out / "checkpoints")}
        sweep([(step, near_minimum(saved, step, scale))], {"all": rows}, scale, quiet, None)


def spread(steps: tuple[int, ...], count: int) -> list[int]:
    """The last, and others about evenly spaced in log step, from a sixth of it on."""
    if count >= len(steps):
        return list(steps)
    wanted = np.geomspace(max(steps[-1] / 6, 1), steps[-1], count)
    return sorted({min(steps, key=lambda step: abs(step - target)) for target in wanted})


def steps_of_window(step: int, window: tuple[float, ...]) -> list[int]:
    """The steps of which the weights are averaged, the step itself the last."""
    return sorted({round(step * share) for share in window} | {step})


def near_minimum(checkpoints: dict[int, rllc.models.Checkpoint], step: int, scale: Scale) -> Any:
    """The model at a step, averaged with those shortly before it.

    While the learning rate is high weights lie on the walls of their minimum, and λ̂ of all heads
    would jump where the rate falls, in the last fifth of the training.
    """
    steps = steps_of_window(step, scale.window)
    return average(rllc.load(checkpoints[kept]) for kept in steps)


# %% The table and the figure
def cell(llc: Any) -> str:
    """One estimate in 16 characters, with a star where something is wrong with it."""
    star = " " if llc.status == "ok" else "*"
    return f"{llc.value:9.1f}{star}({llc.standard_error:4.1f})"


def print_table(final: rllc.Estimate, roles: dict[str, str], names: list[str]) -> None:
    first, second = names[1:3]
    columns = "".join(f"{name[:14]:>16}" for name in names)
    print(f"\n{'head':6}{'role':16}{columns}{f'{first[:8]} - {second[:8]}':>22}  of the prior")
    for head, role in roles.items():
        shown = "".join(cell(final[head, name]) for name in names)
        # Paired draw by draw, so its error knows what both have in common.
        paired = final.difference((head, first), (head, second))
        difference = f"{float(paired.value):14.1f} ({float(paired.standard_error):3.1f})"
        share = final.diagnostics["control_ratio"][final.names.index(head, "all")]
        print(f"{head:6}{role:16}{shown}{difference}{share:14.2f}")
    flagged = sum(status != "ok" for status in final.status)
    print(
        f"standard errors in brackets; {flagged} of {len(final.status)} estimates are flagged, "
        f"with a *: estimate.csv says why.\n"
        f"Last column: the value on all data as a share of what the prior alone gives; near 1 the "
        f"loss is not seen."
    )


def draw(
    trajectory: rllc.Trajectory, circuit: dict[str, np.ndarray], roles: dict[str, str], path: Path
) -> None:
    from matplotlib import pyplot as plt

    num_layers = len({head.split(":")[0] for head in roles})
    figure, axes = plt.subplots(
        1, 1 + num_layers, figsize=(4 + 5 * num_layers, 4.2), layout="constrained"
    )
    steps = circuit["step"]
    for name in ("gain on random tokens", "gain on text"):
        axes[0].plot(steps, circuit[name], label=f"{name}, nats")
    for name in ("previous token", "prefix matching"):
        axes[0].plot(steps, circuit[name], ls="--", label=f"{name}, best head")
    axes[0].set_xscale("symlog", linthresh=10)
    axes[0].set_xlabel("training step")
    axes[0].set_title("text seen twice", fontsize="medium")
    named = {head: role for head, role in roles.items() if role in ("previous token", "induction")}
    rllc.plot_trajectory(trajectory, "all", axes[1:], groups=named or None)
    if any(faults for row in trajectory.faults for faults in row):
        figure.supxlabel("hollow: flagged; ×: no estimate", fontsize="small", color="0.35")
    formed = step_of_formation(circuit)
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    first, last = trajectory.steps[0], trajectory.steps[-1]
    if first > 0:
        ticks = [tick for tick in (100, 200, 500, 1000, 10_000) if first <= tick <= last]
        for ax in axes[1:]:
            ax.set_xscale("log")
            ax.minorticks_off()
            ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
            ax.set_xlim(left=0.9 * first)
    for ax in axes:
        ax.set_xlim(right=1.1 * steps[-1])
        if formed is None:
            continue
        ax.axvline(formed, color="0.4", ls=":", lw=1)
        note = ax.annotate(
            f"circuit forms, step {formed} ",
            (formed, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize="small",
            ha="right",
        )
        note.set_in_layout(False)  # a step at the left edge would leave no room for the axes
    figure.savefig(path, dpi=110)


# %% All of it
def main(argv: list[str] | None = None) -> rllc.Trajectory:
    matplotlib.use("Agg")
    args = arguments(argv)
    scale = FULL if args.full else TINY if args.tiny else SMALL
    begin = time.perf_counter()
    subsets = read(args, scale)
    training_rows = balanced(subsets, args.seed)
    print(f"data: {', '.join(map(repr, subsets.values()))}")

    measured = scale.training.checkpoint_steps()
    chosen = spread(measured, scale.num_checkpoints)
    averaged = [kept for step in chosen for kept in steps_of_window(step, scale.window)]
    rows = first_positions(training_rows, scale.positions)
    beside = None
    if args.device is None and not args.tiny:
        # On a CPU training has one thread, and another process samples what it has saved.
        work = (chosen[:-1], rows, scale, args)
        context = multiprocessing.get_context("spawn")
        beside = context.Process(target=sample_what_is_saved, args=work, daemon=True)
        beside.start()
    model = rllc.train(
        scale.config,
        training_rows,
        args.out / "checkpoints",
        training=replace(scale.training, checkpoints=[*measured, *averaged]),
        seed=args.seed,
        device=args.device,
        progress=not args.quiet,
    )
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"trained {num_weights:,} weights ({time.perf_counter() - begin:.0f} s so far)")

    data = {"all": rows}
    data |= {name: first_positions(subset, scale.positions) for name, subset in subsets.items()}
    data["repeated"] = repeated_text(training_rows, scale.positions)
    checkpoints = {kept.step: kept for kept in rllc.checkpoints(args.out / "checkpoints")}
    of_steps = [checkpoints[step] for step in measured]
    circuit = follow_circuit(of_steps, data["repeated"], args.device)
    print("\n" + "  ".join(circuit))
    for values in zip(*circuit.values(), strict=True):
        cells = zip(circuit, values, strict=True)
        print("  ".join(f"{value:{len(name)}.4g}" for name, value in cells))
    formed = step_of_formation(circuit)
    if formed is None:
        print("no induction circuit has formed: the second copy is predicted no better")
    else:
        print(f"the circuit forms about step {formed}")

    tokenizer = rllc.data.load_tokenizer(args.out / "tokenizer")
    brackets = tokens_in_context.brackets(tokenizer)
    classified = classify(model, rows[:64], brackets=brackets)
    roles = dict(zip(classified.heads, classified.roles, strict=True))
    print(f"\n{classified}\n({time.perf_counter() - begin:.0f} s so far)")

    models = [(step, near_minimum(checkpoints, step, scale)) for step in chosen]
    executor = None
    if beside is not None:
        beside.join()
        # For so small a model two processes of one thread are faster than one of two.
        executor = 2
    last = sweep(models[-1:], data, scale, args, executor)
    trajectory = sweep(models, {"all": rows}, scale, args, executor)
    trajectory.save(args.out / "trajectory.npz")
    final = rllc.Sweep.open(args.out / "sweep").at(last.steps[-1], LIMITS)
    final.to_dataframe(diagnostics=True).to_csv(args.out / "estimate.csv", index=False)
    print_table(final, roles, list(data))
    draw(trajectory, circuit, roles, args.out / "quickstart.png")
    print(f"\n{time.perf_counter() - begin:.0f} s; all files are in {args.out}")
    return trajectory


if __name__ == "__main__":
    main()
