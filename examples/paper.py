"""The paper as one pipeline: train, sweep, analyse, draw, and say of each of its claims whether it holds here.

    python examples/paper.py --tiny                       # a synthetic language, three seeds; minutes on two cores
    python examples/paper.py --small                      # Python's own texts; hours on two cores
    python examples/paper.py --small --data train.jsonl.zst --subsets Github "Wikipedia (en)"
    python examples/paper.py --full --data … --subsets Github --device cuda          # the paper's sizes

Killed, the same command goes on where it stopped: trained models, sweeps and measurements are kept in the output folder.
It leaves a folder a seed with tables, figures and a page for each head, ``claims.csv``, and all on one page, ``report.html``.
Every size is an argument. Needs the extras ``plot``, ``pile`` and ``analysis``.
"""

# %% What is asked for
import argparse
import base64
import hashlib
import html
import json
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from paper_claims import Claim, Run, all_claims
from tqdm.auto import tqdm

import rllc
from rllc.analysis import (
    ablation,
    attention,
    circuit,
    clustering,
    composition,
    curvature,
    patching,
    roles,
    stages,
)
from rllc.analysis.pages import write_pages
from rllc.analysis.tokens_in_context import brackets, common_start, plot_kinds, tokens_in_context
from rllc.data.synthetic import Language
from rllc.files import write_atomically

TINY = {
    "d_model": 64,
    "heads": 4,
    "context": 64,
    "vocab": 96,
    "steps": 2000,
    "batch": 32,
    "lr_train": 1e-2,
}
TINY |= {
    "seeds": 3,
    "train_rows": 10_000,
    "checkpoints": 8,
    "chains": 4,
    "draws": 40,
    "llc_batch": 8,
}
TINY |= {"rows": 256, "probes": 8, "probe_rows": 16, "processes": 2}
SMALL = {
    "d_model": 128,
    "heads": 8,
    "context": 256,
    "vocab": 2000,
    "steps": 8000,
    "batch": 32,
    "lr_train": 2e-3,
}
SMALL |= {
    "seeds": 1,
    "train_rows": 100_000,
    "checkpoints": 14,
    "chains": 4,
    "draws": 40,
    "llc_batch": 8,
}
SMALL |= {"rows": 512, "probes": 4, "probe_rows": 16, "processes": 2}
FULL = {
    "d_model": 256,
    "heads": 8,
    "context": 1024,
    "vocab": 5000,
    "steps": 50_000,
    "batch": 100,
    "lr_train": 1e-3,
}
FULL |= {
    "seeds": 4,
    "train_rows": 1_000_000,
    "checkpoints": 107,
    "chains": 4,
    "draws": 200,
    "llc_batch": 32,
}
FULL |= {"rows": 2000, "probes": 16, "probe_rows": 64, "processes": 0}
WORDS = {
    "train_rows": "rows to train on, at most",
    "checkpoints": "how many are looked at, about evenly spaced in log step",
    "llc_batch": "rows of a minibatch of the sampler",
    "rows": "rows that heads are ablated and classified on",
    "probes": "of the Hessian trace",
    "probe_rows": "rows that the Hessian is of",
    "processes": "to train and sample in, one thread each; 0: this process",
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    for name in ("tiny", "small", "full"):
        size.add_argument(
            f"--{name}", action="store_const", dest="size", const=name, default="tiny"
        )
    parser.add_argument(
        "--data", help="Pile files (.jsonl.zst, .jsonl, a folder, a URL) or a hub data set"
    )
    parser.add_argument("--subsets", nargs="+", help="subsets of --data to refine to, code first")
    parser.add_argument(
        "--subset-data",
        help="where the subsets are, if not in --data; {} stands for a subset's name",
    )
    parser.add_argument(
        "--tokenizer", help="folder or hub repository; default: trained on the texts"
    )
    parser.add_argument("--out", type=Path, help="output folder; default: rllc-out/paper-<size>")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--device", help="where everything is computed, such as cuda; default: the CPU"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    for name, value in TINY.items():
        sizes = f"{value}, {SMALL[name]} or {FULL[name]}"
        words = f"{WORDS[name]}: {sizes}" if name in WORDS else sizes
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=words)
    args = parser.parse_args(argv)
    for name, value in {"tiny": TINY, "small": SMALL, "full": FULL}[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.out = args.out or Path(f"rllc-out/paper-{args.size}")
    for wrong, words in (
        (
            args.data and args.size == "tiny",
            "--tiny is on the synthetic language; --data needs --small or --full",
        ),
        (
            args.data and not args.subsets,
            "--data needs --subsets, of which the first is code: --subsets Github",
        ),
        (args.size == "full" and not args.data, "--full needs --data"),
        (
            not args.data and (args.subsets or args.subset_data),
            "--subsets and --subset-data need --data",
        ),
        (args.tokenizer and args.size == "tiny", "--tiny has no tokenizer"),
        (args.heads < 3, "--heads must be at least 3: fewer curves of a layer cannot be clustered"),
        (args.d_model % args.heads, "--d-model must be a multiple of --heads"),
        (args.checkpoints < 6, "--checkpoints must be at least 6: stages need 5 above step 0"),
        (args.probes < 2, "--probes must be at least 2, for a standard error"),
        (args.seeds < 1, "--seeds must be at least 1"),
    ):
        if wrong:
            parser.error(words)
    return args


# %% The data of one seed: what is trained on, and what estimates are refined to
@dataclass(frozen=True)
class Data:
    """What one seed's model is trained on and looked at with."""

    base: rllc.Tokens
    subsets: Mapping[str, rllc.Tokens]
    """The first is the one that induction heads are for."""
    repeats: rllc.Tokens | None
    """Rows to measure attention on; ``None``: random tokens, repeated."""
    brackets: Mapping[int, Any]
    tokenizer: Any = None


def language_data(args: argparse.Namespace, seed: int) -> Data:
    language = Language(vocab_size=args.vocab, context_length=args.context)
    subsets = {
        name: language.sample(args.train_rows // 5, seed + 1, name).tokens
        for name in ("induction", "ngram")
    }
    repeats = language.sample(64, seed + 1000, "induction").tokens
    return Data(
        language.sample(args.train_rows, seed + 1).tokens, subsets, repeats, language.brackets
    )


def text_data(args: argparse.Namespace) -> Data:
    if args.data:
        place = args.subset_data or args.data
        texts = {
            name: rllc.data.pile_texts(source=place.format(name))
            if "{}" in place
            else rllc.data.pile_texts(name, source=place)
            for name in args.subsets
        }  # read later, and only as far as needed
        some = islice(rllc.data.pile_texts(source=args.data), 20_000)
        every = rllc.data.pile_texts(source=args.data)
    else:
        corpus = rllc.data.python_corpus()
        texts = {name: iter(documents) for name, documents in corpus.items()}
        some = [text for documents in corpus.values() for text in documents]
        every = iter(np.random.default_rng(0).permutation(np.array(some, dtype=object)))
    tokenizer = rllc.data.load_tokenizer(args.tokenizer or own_tokenizer(args, some))
    args.vocab = len(tokenizer)

    def packed(name: str, documents: Iterable[str], num_rows: int) -> rllc.Tokens:
        bar = tqdm(documents, desc=f"tokenizing {name}", unit="text", disable=args.quiet)
        return rllc.data.tokenize(bar, tokenizer, args.context, name=name, num_rows=num_rows)

    pairs = brackets(tokenizer, ("()", "[]", "{}"))
    subsets = {
        name: packed(name, documents, min(args.train_rows // 5, 20_000))
        for name, documents in texts.items()
    }
    return Data(packed("all", every, args.train_rows), subsets, None, pairs, tokenizer)


def own_tokenizer(args: argparse.Namespace, texts: Iterable[str]) -> Path:
    """The folder of a tokenizer trained on these texts; whole or not there."""
    there = args.out / f"tokenizer-{args.vocab}"
    if not there.exists():
        unfinished = args.out / f"{there.name}.unfinished"
        rllc.data.train_tokenizer(texts, vocab_size=args.vocab).save_pretrained(unfinished)
        unfinished.replace(there)
    return there


# %% Train each seed's model, and a one-layer model on the same data
def train(args: argparse.Namespace, data: Mapping[int, Data]) -> None:
    jobs = [
        (args, seed, layers, data[seed].base.rows.numpy()) for seed in data for layers in (2, 1)
    ]
    if not args.processes:
        for job in jobs:
            train_one(*job, progress=not args.quiet)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, context, initializer=begin_worker) as pool:
        running = [pool.submit(train_one, *job) for job in jobs]
        try:
            for done in tqdm(running, desc="training", unit="model", disable=args.quiet):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_worker() -> None:
    """One thread; and an end when whoever started the worker ends, however that comes."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=wait, daemon=True).start()


def train_one(
    args: argparse.Namespace, seed: int, layers: int, rows: np.ndarray, progress: bool = False
) -> None:
    config = rllc.models.AttentionOnlyConfig(
        n_layers=layers,
        d_model=args.d_model,
        n_heads=args.heads,
        d_head=args.d_model // args.heads,
        n_ctx=args.context,
        d_vocab=args.vocab,
    )
    rllc.train(
        config,
        rllc.Tokens(rows, "training"),
        num_steps=args.steps,
        batch_size=args.batch,
        lr=args.lr_train,
        seed=seed,
        out=folder(args, seed) / ("checkpoints" if layers == 2 else "one_layer"),
        device=args.device,
        progress=progress,
    )


def folder(args: argparse.Namespace, seed: int) -> Path:
    return args.out / f"seed{seed}"


def chosen(args: argparse.Namespace, seed: int) -> list[rllc.Checkpoint]:
    """The first checkpoint, the last, and others about evenly spaced in log step; so many as are asked for."""
    found = rllc.checkpoints(folder(args, seed) / "checkpoints")
    steps = np.log(np.maximum([checkpoint.step for checkpoint in found], 0.5))
    taken = {0}
    for wanted in np.linspace(steps[-1], steps[1], min(args.checkpoints, len(found)) - 1):
        taken.add(min(set(range(len(found))) - taken, key=lambda k: abs(steps[k] - wanted)))
    return [found[k] for k in sorted(taken)]


# %% Three sweeps: each head on all data sets, all weights, and each head against the one-layer model
def sweep(args: argparse.Namespace, seed: int, data: Data) -> dict[str, rllc.Trajectory]:
    here = folder(args, seed)
    looked_at = chosen(args, seed)
    sampling = rllc.Sampling(
        num_chains=args.chains,
        num_draws=args.draws,
        batch_size=args.llc_batch,
        start="gaussian",
        control_variate=True,
        seed=seed,
        device=args.device,
    )
    one_layer = rllc.load(here / "one_layer", device=args.device)
    asked = {
        "heads": ({data.base.name: data.base, **data.subsets}, rllc.heads, None),
        "whole": (data.base, None, None),
        "distilled": (data.base, rllc.heads, rllc.distillation(one_layer)),
    }
    found = {}
    for name, (rows, weights, loss) in asked.items():
        if not args.quiet:
            print(f"seed {seed}: sweep of {name}", flush=True)
        found[name] = rllc.track(
            looked_at,
            rows,
            weights,
            loss=loss,
            sampling=sampling,
            store=here / f"sweep-{name}",
            executor=args.processes or None,
            progress=not args.quiet,
        )
        found[name].to_dataframe().to_csv(here / f"{name}.csv", index=False)
        rllc.report(here / f"sweep-{name}", here / f"sweep-{name}.html")
    return found


# %% What else is measured of the heads at each checkpoint
def measure(args: argparse.Namespace, seed: int, data: Data) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``step, head, previous_token, …`` and ``step, sender, receiver, input, composition, …``; one file a checkpoint."""
    asked = [data.base.fingerprint, args.rows, args.probes, args.probe_rows, rllc.__version__]
    kept = (
        folder(args, seed)
        / f"measured-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"
    )
    heads, pairs = [], []
    bar = tqdm(
        chosen(args, seed),
        desc=f"seed {seed}: other measures",
        unit="checkpoint",
        disable=args.quiet,
    )
    for checkpoint in bar:
        names = (
            f"{checkpoint.step}-{checkpoint.sha256()[:12]}-{what}.csv"
            for what in ("heads", "pairs")
        )
        paths = [kept / name for name in names]
        if not all(path.exists() for path in paths):
            model = rllc.load(checkpoint, device=args.device)
            tables = of_heads(args, seed, model, data), composition.compose(model).to_dataframe()
            for path, table in zip(paths, tables, strict=True):
                table = table.assign(step=checkpoint.step)
                write_atomically(path, lambda file, table=table: table.to_csv(file, index=False))
        heads.append(pd.read_csv(paths[0]))
        pairs.append(pd.read_csv(paths[1]))
    return pd.concat(heads, ignore_index=True), pd.concat(pairs, ignore_index=True)


def some_rows(data: Data, count: int, seed: int, which: int = 0) -> rllc.Tokens:
    """Random rows: neighbours are often of one document. Those of another ``which`` are other rows."""
    order = np.random.default_rng(seed).permutation(len(data.base))
    return data.base[order[which * count : (which + 1) * count].tolist()]


def of_heads(args: argparse.Namespace, seed: int, model: Any, data: Data) -> pd.DataFrame:
    rows = some_rows(data, args.rows, seed)
    table = attention.scores(
        model, data.repeats, bos=common_start(rows.rows), seed=seed
    ).to_dataframe()
    ablated = ablation.ablate(model, rows)
    probing = curvature.Probing(num_probes=args.probes, num_rows=args.probe_rows, seed=seed)
    trace = curvature.hessian_trace(model, rows, rllc.heads(model), probing=probing, progress=False)
    columns = {"delta_loss": ablated.delta, "delta_loss_se": ablated.standard_error}
    return table.assign(**columns, hessian_trace=trace.value, hessian_trace_se=trace.standard_error)


# %% The heads of the trained model
def look(
    args: argparse.Namespace, seed: int, data: Data
) -> tuple[roles.Roles, patching.Patching, Any]:
    """Roles, the paths into the keys of the best prefix-matching head, and what the multigram heads' ablation costs."""
    here, rows = folder(args, seed), some_rows(data, args.rows, seed)
    model = rllc.load(here / "checkpoints", device=args.device)
    contexts = tokens_in_context(model, rows, brackets=data.brackets, tokenizer=data.tokenizer)
    scores = attention.scores(model, data.repeats, bos=common_start(rows.rows), seed=seed)
    found = roles.classify(model, rows, contexts=contexts, scores=scores)
    write_pages(here / "pages", model, contexts)
    found.to_dataframe().to_csv(here / "roles.csv", index=False)
    contexts.multigrams_to_dataframe().to_csv(here / "multigrams.csv", index=False)

    best = int(scores.prefix_matching[1].argmax())
    repeats = (
        attention.repeated_rows(model, bos=common_start(rows.rows), seed=seed)
        if data.repeats is None
        else data.repeats
    )
    paths = patching.patch_paths(
        model, repeats, [f"0:{h}->1:{best}.K" for h in range(args.heads)], seed=seed
    )
    paths.to_dataframe().to_csv(here / "paths.csv", index=False)

    mine, cost = found.having("multigram"), None
    others = [head for head in found.heads if head not in mine]
    if mine and {head.split(":")[0] for head in mine} & {head.split(":")[0] for head in others}:
        unseen = some_rows(data, args.rows, seed, which=1)  # these had no say in the roles
        masks = {
            name: mask
            for name, mask in multigram_masks(data.base, unseen, args.vocab).items()
            if mask.sum() >= 20
        }
        cost = circuit.ablate_circuit(model, unseen, mine, masks, seed=seed) if masks else None
    (here / "circuit.csv").unlink(missing_ok=True)
    if cost is not None:
        cost.to_dataframe().to_csv(here / "circuit.csv", index=False)
    return found, paths, cost


def multigram_masks(training: rllc.Tokens, rows: rllc.Tokens, vocab: int) -> dict[str, np.ndarray]:
    """Tokens that a bigram predicts (simple), and those that only the two tokens before do (complex).

    A token is predicted if it came after the same tokens at least half of at least 10 times in training; a complex one
    came after the last of them in less than a fifth.
    """
    ids = rows.rows.numpy()
    one, seen_one = chances(training, ids, 1, vocab)
    two, seen_two = chances(training, ids, 2, vocab)
    simple = (one >= 0.5) & (seen_one >= 10)
    return {"simple": simple, "complex": (two >= 0.5) & (seen_two >= 10) & (one < 0.2)}


def chances(
    training: rllc.Tokens, ids: np.ndarray, order: int, vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each token, how often it came after the ``order`` tokens before it in training: share, and of how many times."""

    def keys(rows: np.ndarray, first: int, last: int) -> np.ndarray:
        """Tokens from ``first`` to ``last`` places before each as one number, from position ``order`` on."""
        number = np.zeros((len(rows), rows.shape[1] - order), dtype=np.int64)
        for back in range(first, last - 1, -1):
            number = number * vocab + rows[:, order - back : rows.shape[1] - back]
        return number

    def counted(last: int) -> np.ndarray:
        wanted = keys(ids, order, last)
        known, back = np.unique(wanted, return_inverse=True)
        number = np.zeros(len(known), dtype=np.int64)
        for start in range(0, len(training), 10_000):  # of so many rows at a time, so that it fits
            found = keys(training.rows[start : start + 10_000].numpy(), order, last).ravel()
            k = np.searchsorted(known, found).clip(max=len(known) - 1)
            number += np.bincount(k[known[k] == found], minlength=len(known))
        return np.pad(number[back].reshape(wanted.shape), ((0, 0), (order, 0)))

    times = counted(1)
    return counted(0) / np.maximum(times, 1), times


# %% One seed from end to end
def analyse(
    args: argparse.Namespace, seed: int, data: Data
) -> tuple[Run, dict[str, Path], list[str]]:
    """What the claims are asked of, figures (caption -> file), and words on what is not as it should be."""
    swept = sweep(args, seed, data)
    table, pairs = measure(args, seed, data)
    found, paths, cost = look(args, seed, data)
    base, steps = data.base.name, swept["heads"].steps
    finite = [head for head in found.heads if np.isfinite(values_of(swept, head)).all()]
    notes = [
        f"seed {seed}: left out, since an estimate is missing or diverged: {head}"
        for head in found.heads
        if head not in finite
    ]
    for name, trajectory in swept.items():
        words = [status for row in trajectory.status for status in row]
        bad = Counter(re.split(r"[:,\d]", status)[0].strip() for status in words if status != "ok")
        told = ", ".join(f"{count} × {status}" for status, count in bad.most_common())
        notes.append(
            f"seed {seed}: of {len(words)} estimates ({name}) {sum(bad.values())} are not ok: {told or '–'}"
        )
    levels = {head: values_of({"heads": swept["heads"]}, head, base) for head in finite}
    enough = all(sum(head.startswith(f"{layer}:") for head in finite) > 2 for layer in (0, 1))
    whole = swept["whole"]
    there = np.isfinite(whole.value[:, 0])
    run = Run(
        seed=seed,
        heads=swept["heads"],
        distilled=swept["distilled"],
        roles={head: found[head] for head in finite},
        memorised={
            h: int(n)
            for h, n in zip(found.heads, found.evidence["memorised"], strict=True)
            if h in finite
        },
        scores={name: curves(table, name) for name in ("previous_token", "prefix_matching")},
        clusters=clustering.cluster(levels, steps=steps, per_layer=True, seed=seed)
        if enough
        else None,
        paths=paths,
        circuit=cost,
        stages=stages.stages(
            whole.value[there, 0], np.array(steps)[there], whole.standard_error[there, 0], seed=seed
        )
        if (there & (np.array(steps) > 0)).sum() > 4
        else None,
        base=base,
        code=next(iter(data.subsets)),
    )
    return run, draw(folder(args, seed) / "figures", run, found, table, pairs), notes


def values_of(
    swept: Mapping[str, rllc.Trajectory], head: str, data: str | None = None
) -> np.ndarray:
    """λ̂ of a head at each step, in all of these sweeps and on all data or one."""
    return np.concatenate(
        [
            trajectory.value[:, i]
            for trajectory in swept.values()
            for i, (weights, on) in enumerate(zip(trajectory.weights, trajectory.data, strict=True))
            if weights == head and data in (None, on)
        ]
        or [np.empty(0)]
    )


def curves(table: pd.DataFrame, column: str) -> dict[str, list[float]]:
    """Head -> values over training."""
    return {
        head: part.sort_values("step")[column].tolist()
        for head, part in table.groupby("head", sort=False)
    }


# %% Its figures
ROLE_ORDER = ("previous token", "multigram", "induction", "bracket", "", "current token", "other")
"""Roles have the colours that they have in ``plot_roles``, in all figures and seeds; the fifth colour is not used."""


def draw(
    here: Path, run: Run, found: roles.Roles, table: pd.DataFrame, pairs: pd.DataFrame
) -> dict[str, Path]:
    """The paper's figures: caption -> file."""
    steps, last = run.heads.steps, run.heads.at(run.heads.steps[-1])
    by_role = {role: role for role in ROLE_ORDER} | run.roles
    final = table[table["step"] == steps[-1]].set_index("head")
    best = run.paths.paths[0].split("->")[1].split(".")[0]
    into = pairs[(pairs["receiver"] == best) & (pairs["input"] == "K")].rename(
        columns={"sender": "head"}
    )
    pictures = {
        f"wrLLC on {run.base}, coloured by role": rllc.plot_trajectory(
            run.heads, run.base, groups=by_role
        ),
        f"wrLLC on {run.code}, coloured by role": rllc.plot_trajectory(
            run.heads, run.code, groups=by_role
        ),
        f"{run.base} against {run.code} at the end": rllc.plot_data_pair(
            last, run.base, run.code, groups=by_role
        ),
        "wrLLC against memorised multigrams": rllc.plot_against(
            run.memorised, last, run.base, groups=by_role, xlabel="memorised multigrams"
        ),
        "wrLLC with ℓ = L1": rllc.plot_trajectory(run.distilled, groups=by_role),
        f"K-composition of layer 0 with {best}": rllc.plot_curves(
            curves(into, "excess"),
            steps,
            groups=by_role,
            ylabel=f"K-composition with {best}, over random",
        ),
        "ablation over training": rllc.plot_curves(
            curves(table, "delta_loss"),
            steps,
            error=curves(table, "delta_loss_se"),
            groups=by_role,
            ylabel="Δloss (nats)",
        ),
        "Hessian trace over training": rllc.plot_curves(
            curves(table, "hessian_trace"),
            steps,
            error=curves(table, "hessian_trace_se"),
            groups=by_role,
            ylabel="tr H",
        ),
        "wrLLC against ablation": rllc.plot_against(
            final["delta_loss"].to_dict(),
            last,
            run.base,
            groups=by_role,
            xlabel="Δloss when ablated (nats)",
        ),
        "wrLLC against Hessian trace": rllc.plot_against(
            final["hessian_trace"].to_dict(), last, run.base, groups=by_role, xlabel="tr H"
        ),
        "roles and their evidence": roles.plot_roles(found),
        "tokens in context": plot_kinds(found.contexts),
    }
    if run.clusters is not None:
        clusters = {name: f"cluster {run.clusters[name]}" for name in run.clusters.names}
        by_cluster = rllc.plot_trajectory(run.heads, run.base, groups=clusters)
        pictures = {f"wrLLC on {run.base}, coloured by cluster": by_cluster} | pictures
        pictures["clusters of the curves"] = clustering.plot_clusters(run.clusters, run.roles)
    if run.stages is not None:
        of_all = stages.plot_stages(run.stages)
        of_all.set_ylabel(r"$\hat\lambda$ of all weights")
        pictures["LLC of the whole model, and stages"] = of_all
    if run.circuit is not None:
        pictures["multigram heads ablated together"] = circuit.plot_circuit(run.circuit)
    here.mkdir(exist_ok=True)
    for old in here.glob("*.png"):
        old.unlink()
    files = {}
    for caption, axes in pictures.items():
        figure = np.ravel(np.array(axes, dtype=object))[0].figure
        files[caption] = (
            here / f"{''.join(c if c.isascii() and c.isalnum() else '_' for c in caption)}.png"
        )
        figure.savefig(files[caption], dpi=130)
        plt.close(figure)
    return files


# %% All on one page
def write_page(
    args: argparse.Namespace,
    claims: Sequence[Claim],
    notes: Sequence[str],
    figures: Mapping[int, Mapping[str, Path]],
    settings: Mapping[str, Any],
) -> Path:
    def image(caption: str, path: Path) -> str:
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'

    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(part)}</td>" for part in claim) + "</tr>"
        for claim in claims
    )
    parts = [f"<table><tr><th>claim<th>criterion<th>measured<th>verdict</tr>{rows}</table>"]
    parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    for seed, pictures in figures.items():
        links = [
            f'<a href="seed{seed}/{p.name}">{p.name}</a>'
            for p in sorted(folder(args, seed).glob("sweep-*.html"))
        ]
        links.append(f'<a href="seed{seed}/pages/index.html">tokens in context</a>')
        parts += [
            f"<h2>seed {seed}</h2><p>{' · '.join(links)}</p>",
            *(image(*pair) for pair in pictures.items()),
        ]
    told = {**vars(args), **{f"sampling {name}": value for name, value in settings.items()}}
    words = html.escape(", ".join(f"{name} {value}" for name, value in told.items()))
    style = "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{vertical-align:top;padding:.4em;text-align:left}"
    style += "tr:nth-child(odd){background:#f4f4f4}figure{display:inline-block;margin:1em}img{max-width:36em}"
    text = (
        f"<!doctype html><meta charset='utf-8'><title>The paper's claims, {args.size}</title><style>{style}</style>"
        f"<h1>The paper's claims, {args.size}</h1><p>{words}; rllc {rllc.__version__}, torch {torch.__version__}</p>"
        + "".join(parts)
    )
    path = args.out / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> list[Claim]:
    matplotlib.use("Agg")
    args, begin = arguments(argv), time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    text = None if args.size == "tiny" else text_data(args)
    data = {seed: language_data(args, seed) if text is None else text for seed in seeds}
    train(args, data)
    print(f"trained ({time.perf_counter() - begin:.0f} s so far)", flush=True)

    runs, figures, notes = [], {}, []
    for seed in seeds:
        run, figures[seed], told = analyse(args, seed, data[seed])
        runs.append(run)
        notes += told
        print(
            f"seed {seed}: {', '.join(f'{h} {role}' for h, role in run.roles.items())}", flush=True
        )
    claims = all_claims(runs)
    pd.DataFrame(claims).to_csv(args.out / "claims.csv", index=False)
    page = write_page(args, claims, notes, figures, runs[0].heads.settings)
    print("", *notes, sep="\n")
    for claim in claims:
        print(
            f"\n{claim.verdict.upper()}: {claim.claim}\n    {claim.criterion}\n    {claim.measured}"
        )
    print(f"\n{time.perf_counter() - begin:.0f} s; all on one page: {page}")
    return claims


if __name__ == "__main__":  # worker processes import this file
    main()
