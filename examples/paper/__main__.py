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

# Worker processes import this file too. They need no stage, and some take seconds to import.
if __name__ == "__main__":
    from .pipeline import main

    main(description=__doc__)
