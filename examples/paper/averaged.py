"""Checkpoints near a minimum: weights averaged over the last steps before each measured one."""

import shutil
from pathlib import Path

from transformers.utils import logging

import rllc
from rllc.models import average

from .settings import Settings
from .train import WINDOW, measured_steps


def averaged_checkpoints(settings: Settings, seed: int) -> list[rllc.models.Checkpoint]:
    """The checkpoints that estimates are made at, as far as training has come.

    λ̂ is of a neighbourhood of a minimum. A high learning rate leaves weights on the walls around
    it, where λ̂ says how far the noise of training has carried them. The mean over a window of
    training lies nearer the middle. Step 0 is as it is.
    """
    folder = settings.folder(seed) / "averaged"
    folder.mkdir(exist_ok=True)
    source = settings.folder(seed) / "checkpoints"
    trained = {checkpoint.step for checkpoint in rllc.checkpoints(source)}
    for step in measured_steps(settings):
        final = folder / f"step{step:07d}"
        if step in trained and not final.exists():
            write_average(source, step, final)
    return rllc.checkpoints(folder)


def write_average(source: Path, step: int, final: Path) -> None:
    """Write one checkpoint, whole or not at all."""
    members = {checkpoint.step: checkpoint for checkpoint in rllc.checkpoints(source)}
    before = {round(step * share) for share in WINDOW}
    model = average(rllc.load(members[other]) for other in sorted(before | {step}))
    logging.disable_progress_bar()
    unfinished = final.with_name(f"{final.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    unfinished.replace(final)
