"""The paper as one pipeline: train, sweep, analyse, draw, and say of each claim what was found.

    python -m examples.paper --tiny       # a synthetic language, three seeds
    python -m examples.paper --small      # Python's own texts, half code and half prose
    python -m examples.paper --small --data train.jsonl.zst --subsets Github "Wikipedia (en)"
    python -m examples.paper --full --data … --subsets Github … --device cuda   # the paper's sizes
    python -m examples.paper --full … --cost     # what it would take here, from a few steps of each
    python -m examples.paper.claims       # the table again, from the stored results, in a minute

Run it in the folder of the repository. Killed, the same command goes on where it stopped: trained
models, sweeps and measurements are kept in the output folder, so ``timeout 8m`` before it makes
pieces of 8 minutes. It leaves a folder a seed, small files from which claims and figures are made
again (``results``), and all on one page, ``report.html``. Every size is an argument; more
checkpoints, draws and seeds reuse what is there. Needs the extras ``plot``, ``pile`` and
``analysis``.
"""

# Worker processes import this file too. They need no stage, and some take seconds to import.
if __name__ == "__main__":
    from .pipeline import main

    main(description=__doc__)
