"""The paper as one pipeline: train, sweep, analyse, draw, and say of each claim whether it holds.

    python -m examples.paper --tiny       # a synthetic language, three seeds; minutes on two cores
    python -m examples.paper --small      # Python's own texts; hours on two cores
    python -m examples.paper --small --data train.jsonl.zst --subsets Github "Wikipedia (en)"
    python -m examples.paper --full --data … --subsets Github --device cuda   # the paper's sizes

Run it in the folder of the repository. Killed, the same command goes on where it stopped: trained
models, sweeps and measurements are kept in the output folder. It leaves a folder a seed with
tables, figures and a page for each head, ``claims.csv``, and all on one page, ``report.html``.
Every size is an argument. Needs the extras ``plot``, ``pile`` and ``analysis``.
"""

import time

import matplotlib
import pandas as pd

from .analyse import analyse
from .claims import Claim, all_claims
from .data import read_data
from .page import write_page
from .settings import read_settings
from .train import train


def main(argv: list[str] | None = None) -> list[Claim]:
    """Run the pipeline; returns the claims."""
    matplotlib.use("Agg")
    begin = time.perf_counter()
    settings = read_settings(argv, description=__doc__)
    settings.out.mkdir(parents=True, exist_ok=True)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    data = read_data(settings, seeds)
    train(settings, data)
    print(f"trained ({time.perf_counter() - begin:.0f} s so far)", flush=True)

    runs = []
    notes = []
    figures = {}
    for seed in seeds:
        analysis = analyse(settings, seed, data[seed])
        runs.append(analysis.run)
        notes += analysis.notes
        figures[seed] = analysis.figures
        roles = [f"{head} {role}" for head, role in analysis.run.roles.items()]
        print(f"seed {seed}: {', '.join(roles)}", flush=True)

    claims = all_claims(runs)
    pd.DataFrame(claims).to_csv(settings.out / "claims.csv", index=False)
    page = write_page(settings, claims, notes, figures, runs[0].heads.settings)

    print("", *notes, sep="\n")
    for claim in claims:
        print(f"\n{claim.verdict.upper()}: {claim.claim}")
        print(f"    {claim.criterion}\n    {claim.measured}")
    print(f"\n{time.perf_counter() - begin:.0f} s; all on one page: {page}")
    return claims


if __name__ == "__main__":  # worker processes import this file
    main()
