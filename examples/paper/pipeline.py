"""The whole pipeline, in the order of its stages."""

import time

import matplotlib
import pandas as pd

from .analyse import analyse
from .claims import Claim, all_claims
from .data import read_data
from .page import write_page
from .settings import read_settings
from .train import train


def main(argv: list[str] | None = None, description: str | None = None) -> list[Claim]:
    """Run the pipeline with these options; returns the claims."""
    matplotlib.use("Agg")
    begin = time.perf_counter()
    settings = read_settings(argv, description)
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
