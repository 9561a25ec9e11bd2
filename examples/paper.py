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
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from paper_claims import Claim, Run, all_claims
from tqdm.auto import tqdm

import rllc
from rllc.analysis import ablation, attention, circuit, clustering, composition, curvature, patching, roles, stages
from rllc.analysis.pages import write_pages
from rllc.analysis.tokens_in_context import brackets, common_start, plot_kinds, tokens_in_context
from rllc.data.synthetic import Language

TINY = {"d_model": 64, "heads": 4, "context": 64, "vocab": 96, "steps": 2000, "batch": 32, "lr_train": 1e-2}
TINY |= {"seeds": 3, "train_rows": 10_000, "checkpoints": 12, "chains": 4, "draws": 40, "llc_batch": 8}
TINY |= {"rows": 256, "probes": 8, "probe_rows": 16, "processes": 2}
SMALL = {"d_model": 128, "heads": 8, "context": 256, "vocab": 2000, "steps": 8000, "batch": 32, "lr_train": 2e-3}
SMALL |= {"seeds": 1, "train_rows": 100_000, "checkpoints": 14, "chains": 4, "draws": 40, "llc_batch": 8}
SMALL |= {"rows": 512, "probes": 4, "probe_rows": 16, "processes": 2}
FULL = {"d_model": 256, "heads": 8, "context": 1024, "vocab": 5000, "steps": 50_000, "batch": 100, "lr_train": 1e-3}
FULL |= {"seeds": 4, "train_rows": 5_000_000, "checkpoints": 107, "chains": 4, "draws": 200, "llc_batch": 32}
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    for name in ("tiny", "small", "full"):
        size.add_argument(f"--{name}", action="store_const", dest="size", const=name, default="tiny")
    parser.add_argument("--data", help="Pile files (.jsonl.zst, .jsonl, a folder, a URL) or a hub data set")
    parser.add_argument("--subsets", nargs="+", help="subsets of --data to refine to, code first")
    parser.add_argument("--subset-data", help="where the subsets are, if not in --data")
    parser.add_argument("--tokenizer", help="folder or hub repository; default: trained on the texts")
    parser.add_argument("--out", type=Path, help="output folder; default: rllc-out/paper-<size>")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", help="where to train and sample, such as cuda; default: the CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    for name, value in TINY.items():
        sizes = f"{value}, {SMALL[name]} or {FULL[name]}"
        help = f"{WORDS[name]}: {sizes}" if name in WORDS else sizes
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=help)
    args = parser.parse_args(argv)
    for name, value in {"tiny": TINY, "small": SMALL, "full": FULL}[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.out = args.out or Path(f"rllc-out/paper-{args.size}")
    if args.data and not args.subsets:
        parser.error("--data needs --subsets, of which the first is code: such as --subsets Github 'Wikipedia (en)'")
    if args.size == "full" and not args.data:
        parser.error("--full needs --data")
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
    subsets = {name: language.sample(args.train_rows // 5, seed + 1, name).tokens for name in ("induction", "ngram")}
    repeats = language.sample(64, seed + 1000, "induction").tokens
    return Data(language.sample(args.train_rows, seed + 1).tokens, subsets, repeats, language.brackets)


def text_data(args: argparse.Namespace) -> Data:
    if args.data:
        every = rllc.data.pile_texts(source=args.data)
        texts = {
            name: rllc.data.pile_texts(name, source=args.subset_data or args.data) for name in args.subsets
        }  # read later, and only as far as needed
        some = islice(rllc.data.pile_texts(source=args.data), 20_000)
    else:
        corpus = rllc.data.python_corpus()
        texts = {name: iter(documents) for name, documents in corpus.items()}
        some = [text for documents in corpus.values() for text in documents]
        every = iter(np.random.default_rng(0).permutation(np.array(some, dtype=object)))
    if not args.tokenizer and not (args.out / "tokenizer").exists():
        rllc.data.train_tokenizer(some, vocab_size=args.vocab).save_pretrained(args.out / "tokenizer")
    tokenizer = rllc.data.load_tokenizer(args.tokenizer or args.out / "tokenizer")

    def packed(name: str, documents: Iterable[str], num_rows: int) -> rllc.Tokens:
        bar = tqdm(documents, desc=f"tokenizing {name}", unit="text", disable=args.quiet)
        return rllc.data.tokenize(bar, tokenizer, args.context, name=name, num_rows=num_rows)

    base = packed("all", every, args.train_rows)
    subsets = {name: packed(name, documents, args.train_rows // 5) for name, documents in texts.items()}
    return Data(base, subsets, None, brackets(tokenizer), tokenizer)


# %% Train each seed's model, and a one-layer model on the same data
def train(args: argparse.Namespace, data: Mapping[int, Data]) -> None:
    jobs = [(args, seed, layers, data[seed].base) for seed in data for layers in (2, 1)]
    if not args.processes:
        for job in jobs:
            train_one(*job, progress=not args.quiet)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [pool.submit(train_one, *job) for job in jobs]
        for done in tqdm(running, desc="training", unit="model", disable=args.quiet):
            done.result()


def train_one(args: argparse.Namespace, seed: int, layers: int, tokens: rllc.Tokens, progress: bool = False) -> None:
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
        tokens,
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


def spread(found: list[rllc.Checkpoint], count: int) -> list[rllc.Checkpoint]:
    """The first, the last, and others about evenly spaced in log step."""
    steps = np.array([checkpoint.step for checkpoint in found])
    wanted = np.geomspace(max(steps[1], 1), steps[-1], count - 1)
    return [found[k] for k in sorted({0, *(int(np.abs(steps - step).argmin()) for step in wanted)})]


# %% Three sweeps: each head on all data sets, all weights, and each head against the one-layer model
def sweep(args: argparse.Namespace, seed: int, data: Data) -> dict[str, rllc.Trajectory]:
    here = folder(args, seed)
    chosen = spread(rllc.checkpoints(here / "checkpoints"), args.checkpoints)
    sampling = rllc.Sampling(
        num_chains=args.chains,
        num_draws=args.draws,
        batch_size=args.llc_batch,
        start="gaussian",
        control_variate=True,
        seed=seed,
        device=args.device,
    )
    one_layer = rllc.load(here / "one_layer")
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
            chosen,
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
    asked = [data.base.fingerprint, args.rows, args.probes, args.probe_rows]
    kept = folder(args, seed) / f"measured-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"
    kept.mkdir(exist_ok=True)
    chosen = spread(rllc.checkpoints(folder(args, seed) / "checkpoints"), args.checkpoints)
    heads, pairs = [], []
    for checkpoint in tqdm(chosen, desc=f"seed {seed}: other measures", unit="checkpoint", disable=args.quiet):
        paths = kept / f"{checkpoint.step}-heads.csv", kept / f"{checkpoint.step}-pairs.csv"
        if not all(path.exists() for path in paths):
            model = rllc.load(checkpoint)
            for path, table in zip(paths, (of_heads(args, seed, model, data), of_pairs(model)), strict=True):
                written = path.with_suffix(".tmp")
                table.assign(step=checkpoint.step).to_csv(written, index=False)
                written.replace(path)  # whole or not there
        heads.append(pd.read_csv(paths[0]))
        pairs.append(pd.read_csv(paths[1]))
    return pd.concat(heads, ignore_index=True), pd.concat(pairs, ignore_index=True)


def of_heads(args: argparse.Namespace, seed: int, model: Any, data: Data) -> pd.DataFrame:
    rows = data.base[: args.rows]
    table = attention.scores(model, data.repeats, bos=common_start(rows.rows), seed=seed).to_dataframe()
    ablated = ablation.ablate(model, rows)
    probing = curvature.Probing(num_probes=args.probes, seed=seed)
    trace = curvature.hessian_trace(model, rows[: args.probe_rows], rllc.heads(model), probing=probing, progress=False)
    columns = {"delta_loss": ablated.delta, "delta_loss_se": ablated.standard_error}
    return table.assign(**columns, hessian_trace=trace.value, hessian_trace_se=trace.standard_error)


def of_pairs(model: Any) -> pd.DataFrame:
    return composition.compose(model).to_dataframe()


# %% The heads of the trained model
def look(args: argparse.Namespace, seed: int, data: Data) -> tuple[roles.Roles, patching.Patching, Any]:
    """Roles, the paths into the keys of the best prefix-matching head, and what the multigram heads' ablation costs."""
    model, here, rows = rllc.load(folder(args, seed) / "checkpoints"), folder(args, seed), data.base[: args.rows]
    contexts = tokens_in_context(model, rows, brackets=data.brackets, tokenizer=data.tokenizer)
    scores = attention.scores(model, data.repeats, bos=common_start(rows.rows), seed=seed)
    found = roles.classify(model, rows, contexts=contexts, scores=scores)
    write_pages(here / "pages", model, contexts)
    found.to_dataframe().to_csv(here / "roles.csv", index=False)
    contexts.multigrams_to_dataframe().to_csv(here / "multigrams.csv", index=False)

    best = int(scores.prefix_matching[1].argmax())
    repeats = (
        attention.repeated_rows(model, bos=common_start(rows.rows), seed=seed) if data.repeats is None else data.repeats
    )
    paths = patching.patch_paths(model, repeats, [f"0:{h}->1:{best}.K" for h in range(args.heads)], seed=seed)
    paths.to_dataframe().to_csv(here / "paths.csv", index=False)

    masks = {name: mask for name, mask in multigram_masks(data.base, rows, args.vocab).items() if mask.sum() >= 20}
    mine, cost = found.having("multigram"), None
    others = [head for head in found.heads if head not in mine]
    if len(mine) > 1 and others and masks and {h[0] for h in mine} & {h[0] for h in others}:
        cost = circuit.ablate_circuit(model, rows, mine, masks, seed=seed)
        cost.to_dataframe().to_csv(here / "circuit.csv", index=False)
    return found, paths, cost


def multigram_masks(training: rllc.Tokens, rows: rllc.Tokens, vocab: int) -> dict[str, np.ndarray]:
    """Tokens that a bigram predicts (simple), and those that only the two tokens before do (complex).

    A token is predicted if it came after the same tokens at least half of at least 10 times in training; a complex one
    came after the last of them in less than a fifth.
    """
    ids, mine = training.rows.numpy(), rows.rows.numpy()
    one, seen_one = chances(ids[:, :-1], ids[:, 1:], mine[:, :-1], mine[:, 1:], vocab)
    two, seen_two = chances(
        ids[:, :-2] * vocab + ids[:, 1:-1], ids[:, 2:], mine[:, :-2] * vocab + mine[:, 1:-1], mine[:, 2:], vocab
    )
    simple, complex_ = (np.zeros(mine.shape, dtype=bool) for _ in range(2))
    simple[:, 1:] = (one >= 0.5) & (seen_one >= 10)
    complex_[:, 2:] = (two >= 0.5) & (seen_two >= 10) & (one[:, 1:] < 0.2)
    return {"simple": simple, "complex": complex_}


def chances(context, target, my_context, my_target, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """How often my targets came after my contexts in training, as a share of the contexts' number, and that number."""

    def counted(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        known, number = np.unique(values, return_counts=True)
        k = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where(known[k] == wanted, number[k], 0)

    times = counted(context, my_context)
    together = counted(context * vocab + target, my_context * vocab + my_target)
    return together / np.maximum(times, 1), times


# %% One seed from end to end
def analyse(args: argparse.Namespace, seed: int, data: Data) -> tuple[Run, dict[str, Path]]:
    swept = sweep(args, seed, data)
    table, pairs = measure(args, seed, data)
    found, paths, cost = look(args, seed, data)
    base = data.base.name
    names = ("previous_token", "prefix_matching")
    run = Run(
        **swept,
        roles=dict(zip(found.heads, found.roles, strict=True)),
        memorised=dict(zip(found.heads, found.evidence["memorised"].tolist(), strict=True)),
        scores={name: curves(table, name) for name in names},
        clusters=clustering.cluster(swept["heads"], per_layer=True, data=base, seed=seed),
        paths=paths,
        circuit=cost,
        stages=stages.stages(swept["whole"], data=base, seed=seed),
        base=base,
        code=next(iter(data.subsets)),
    )
    return run, draw(folder(args, seed), run, found, table, pairs)


def curves(table: pd.DataFrame, column: str) -> dict[str, list[float]]:
    """Head -> values over training."""
    return {head: part.sort_values("step")[column].tolist() for head, part in table.groupby("head")}


# %% Its figures
ROLE_ORDER = ("previous token", "multigram", "induction", "bracket", "(none)", "current token", "other")


def draw(here: Path, run: Run, found: roles.Roles, table: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Path]:
    """The paper's figures: caption -> file."""
    steps, last = run.heads.steps, run.heads.at(run.heads.steps[-1])
    by_role = {role: role for role in ROLE_ORDER} | run.roles  # a role has one colour in all figures and seeds
    clusters = {name: f"cluster {run.clusters[name]}" for name in run.clusters.names}
    final = table[table["step"] == steps[-1]].set_index("head")
    best = run.paths.paths[0].split("->")[1].split(".")[0]
    into = pairs[(pairs["receiver"] == best) & (pairs["input"] == "K")]
    composed = {f"{h}": part.sort_values("step")["composition"].tolist() for h, part in into.groupby("sender")}
    pictures = {
        f"wrLLC on {run.base}, coloured by cluster": rllc.plot_trajectory(run.heads, run.base, groups=clusters),
        f"wrLLC on {run.base}, coloured by role": rllc.plot_trajectory(run.heads, run.base, groups=by_role),
        f"wrLLC on {run.code}, coloured by role": rllc.plot_trajectory(run.heads, run.code, groups=by_role),
        f"{run.base} against {run.code} at the end": rllc.plot_data_pair(last, run.base, run.code, groups=by_role),
        "wrLLC against memorised multigrams": rllc.plot_against(
            run.memorised, last, run.base, groups=by_role, xlabel="memorised multigrams"
        ),
        "LLC of the whole model, and stages": stages.plot_stages(run.stages),
        "wrLLC against ℓ = L1": rllc.plot_trajectory(run.distilled, groups=by_role),
        f"K-composition of layer 0 with {best}": rllc.plot_curves(
            composed, steps, groups=by_role, ylabel=f"K-composition with {best}"
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
            final["delta_loss"].to_dict(), last, run.base, groups=by_role, xlabel="Δloss when ablated (nats)"
        ),
        "wrLLC against Hessian trace": rllc.plot_against(
            final["hessian_trace"].to_dict(), last, run.base, groups=by_role, xlabel="tr H"
        ),
        "roles and their evidence": roles.plot_roles(found),
        "tokens in context": plot_kinds(found.contexts),
        "clusters of the curves": clustering.plot_clusters(run.clusters, run.roles),
    }
    if run.circuit is not None:
        pictures["multigram heads ablated together"] = circuit.plot_circuit(run.circuit)
    files = {}
    for caption, axes in pictures.items():
        figure = np.ravel(np.array(axes, dtype=object))[0].figure
        files[caption] = here / f"{''.join(c if c.isascii() and c.isalnum() else '_' for c in caption)}.png"
        figure.savefig(files[caption], dpi=130)
        matplotlib.pyplot.close(figure)
    return files


# %% All on one page
def write_page(args: argparse.Namespace, claims: Sequence[Claim], figures: Mapping[int, Mapping[str, Path]]) -> Path:
    def image(caption: str, path: Path) -> str:
        data = base64.b64encode(path.read_bytes()).decode()
        return (
            f'<figure><img src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    rows = "".join("<tr>" + "".join(f"<td>{html.escape(part)}</td>" for part in claim) + "</tr>" for claim in claims)
    parts = [f"<table><tr><th>claim<th>criterion<th>measured<th>verdict</tr>{rows}</table>"]
    for seed, pictures in figures.items():
        links = [f'<a href="seed{seed}/{p.name}">{p.name}</a>' for p in sorted(folder(args, seed).glob("sweep-*.html"))]
        links.append(f'<a href="seed{seed}/pages/index.html">tokens in context</a>')
        parts += [f"<h2>seed {seed}</h2><p>{' · '.join(links)}</p>", *(image(*pair) for pair in pictures.items())]
    settings = html.escape(", ".join(f"{name} {value}" for name, value in sorted(vars(args).items())))
    style = "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{vertical-align:top;padding:.4em;text-align:left}"
    style += "tr:nth-child(odd){background:#f4f4f4}figure{display:inline-block;margin:1em}img{max-width:36em}"
    text = (
        f"<!doctype html><meta charset='utf-8'><title>The paper's claims, {args.size}</title><style>{style}</style>"
        f"<h1>The paper's claims, {args.size}</h1><p>{settings}; rllc {rllc.__version__}, torch {torch.__version__}</p>"
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
    synthetic = args.size == "tiny" and not args.data
    text = None if synthetic else text_data(args)
    data = {seed: language_data(args, seed) if text is None else text for seed in seeds}
    train(args, data)
    print(f"trained ({time.perf_counter() - begin:.0f} s so far)", flush=True)

    runs, figures = [], {}
    for seed in seeds:
        run, figures[seed] = analyse(args, seed, data[seed])
        runs.append(run)
        print(f"seed {seed}: {', '.join(f'{h} {role}' for h, role in run.roles.items())}", flush=True)
    claims = all_claims(runs)
    table = pd.DataFrame(claims)
    table.to_csv(args.out / "claims.csv", index=False)
    page = write_page(args, claims, figures)
    for claim in claims:
        print(f"\n{claim.verdict.upper()}: {claim.claim}\n    {claim.criterion}\n    {claim.measured}")
    print(f"\n{time.perf_counter() - begin:.0f} s; all on one page: {page}")
    return claims


if __name__ == "__main__":  # worker processes import this file
    main()
