"""Does a component of the heads' susceptibilities single out the induction circuit?

    python examples/quickstart.py --out rllc-out/quickstart     # first: the model
    python examples/structure.py --run rllc-out/quickstart      # some minutes on one core

Chains of every head observe fixed rows: half of them text, half text that comes twice, where an
induction circuit has something to do. The token × head matrix of susceptibilities is decomposed,
for all heads and for each layer, and the loadings are set beside the heads' roles. Writes figures,
a table, and a page of the text coloured by the λ̂ of each token for each head.
"""

# %% What is asked for
import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import quickstart
import torch

import rllc
from rllc.analysis import classify
from rllc.analysis.structure import Structure, plot_components, plot_matrix, structure
from rllc.analysis.token_pages import write_token_page

CIRCUIT = ("previous token", "induction")

PAPERS = rllc.Sampling(n_beta=30.0, batch_size=16, start="center", control_variate=False)
"""Chains start at w* and all draws count, so that what all of them do at first is signal, too."""
PAPERS_SAMPLER = rllc.sgld(lr=1e-3, localization=300.0)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("rllc-out/quickstart"))
    parser.add_argument("--chains", type=int, default=6)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument(
        "--papers", action="store_true", help="sample as the papers on susceptibilities do"
    )
    parser.add_argument("--rows", type=int, default=16, help="of text, and of repeated text")
    parser.add_argument("--tiny", action="store_true", help="seconds, of a tiny quickstart")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


# %% The rows that are observed
def probes_of(rows: rllc.Tokens, positions: int, count: int) -> rllc.Tokens:
    """The last rows, and the same text twice in a row."""
    last = rllc.Tokens(rows.rows[-count:])
    repeated = quickstart.repeated_text(last, positions).rows
    text = last.rows[:, : repeated.shape[1]]
    return rllc.Tokens(torch.cat([text, repeated]), "text and repeated text")


# %% What the components single out
def report(found: Structure, roles: dict[str, str], what: str) -> None:
    print(f"\n{what}\n{found}")
    circuit = [head for head in found.names.weights if roles[head] in CIRCUIT]
    if not 0 < len(circuit) < len(found.names):
        print("no circuit to set apart here")
        return
    for component in range(len(found.share.value)):
        apart = found.separation(component, circuit)
        print(
            f"component {component + 1} puts {', '.join(circuit)} apart from the others with "
            f"order {apart.order:.2f} (½ is chance), "
            f"gap {apart.gap:.2f} ± {apart.standard_error:.2f}"
        )


def main(argv: list[str] | None = None) -> None:
    matplotlib.use("Agg")
    args = arguments(argv)
    scale = quickstart.TINY if args.tiny else quickstart.SMALL
    if args.tiny:
        args.draws, args.chains, args.rows = 6, 3, 2
    read_as = quickstart.arguments(["--out", str(args.run)])
    everything = quickstart.balanced(quickstart.read(read_as, scale), seed=0)
    model = rllc.load(rllc.checkpoints(args.run / "checkpoints")[-1])
    rows = quickstart.first_positions(everything, scale.positions)
    roles_found = classify(model, rows[:64])
    roles = dict(zip(roles_found.heads, roles_found.roles, strict=True))
    print("roles:", ", ".join(f"{head} {role}" for head, role in roles.items()))

    probes = probes_of(everything, scale.positions, args.rows)
    sampler, sampling = (PAPERS_SAMPLER, PAPERS) if args.papers else (scale.sampler, scale.sampling)
    sampling = replace(sampling, num_chains=args.chains, num_draws=args.draws, num_probes=0)
    draws = rllc.sample(
        model,
        rows,
        rllc.heads(model),
        sampler=sampler,
        sampling=sampling,
        compute=rllc.Compute(progress=not args.quiet),
        observe={"probes": rllc.losses_on(probes)},
    )
    found = structure(draws)
    report(found, roles, "all heads")
    for layer in range(scale.config.n_layers):
        heads = [head for head in roles if head.startswith(f"{layer}:")]
        of_layer = structure(draws, weights=heads, num_components=2)
        report(of_layer, roles, f"layer {layer}")
    centred = structure(draws, centre_tokens=True)
    report(centred, roles, "all heads, each token centred over heads")

    found.to_dataframe().to_csv(args.run / "structure.csv", index=False)
    plot_components(found, roles).figure.savefig(args.run / "components.png", dpi=110)
    plot_matrix(found).figure.savefig(args.run / "susceptibilities.png", dpi=110)
    tokenizer = rllc.data.load_tokenizer(args.run / "tokenizer")
    path = args.run / "tokens.html"
    llc = rllc.covariances.token_llc(draws, "probes")
    write_token_page(path, probes, llc, draws.names, tokenizer=tokenizer)
    print(f"\nfigures, the table and {path.name} are in {args.run}")


if __name__ == "__main__":
    main()
