"""What the whole pipeline would take on this machine, from a few steps of each of its pieces."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import rllc
from rllc.models import AttentionOnly

from .data import Data
from .settings import Settings
from .sweep import arguments, every, plans
from .train import config_of, measured_steps, training_of

FEW = 2
MORE = 6


def print_cost(settings: Settings, data: Mapping[int, Data]) -> float:
    """Print the hours of each piece, for all seeds, in one process; returns their sum.

    Nothing is written. Time depends on sizes alone, so a model at its start stands for all.
    """
    some = next(iter(data.values()))
    num_seeds = len(data)
    num_one_layer = len({settings.one_layer_seed(seed) for seed in data})
    step_counts = {
        2: num_seeds * settings.steps,
        1: num_one_layer * settings.one_layer_steps,
    }
    total = 0.0
    for num_layers, count in step_counts.items():
        seconds = seconds_a_step(settings, some, num_layers)
        hours = count * seconds / 3600
        total += hours
        print(f"training, {num_layers} layers: {count:,} steps of {seconds:.3f} s: {hours:.2f} h")
    device = settings.device or "cpu"
    two_layers: Any = AttentionOnly(config_of(settings, 2, some.vocab_size))
    one_layer: Any = AttentionOnly(config_of(settings, 1, some.vocab_size))
    steps = measured_steps(settings)
    for plan in plans(settings, some):
        models = dict.fromkeys(every(steps, plan.every), two_layers.to(device))
        given = arguments(settings, 0, plan, one_layer.to(device))
        given["compute"] = replace(given["compute"], executor=None, progress=False)
        one = rllc.sweep.sweep_cost(models, plan.data, **given)
        hours = num_seeds * one.seconds / 3600
        total += hours
        print(f"sweep of {plan.name}: {num_seeds * one.num_missing} cells: {hours:.2f} h")
    print(f"in all {total:.2f} h in one process")
    return total


def seconds_a_step(settings: Settings, data: Data, num_layers: int) -> float:
    """Of training, without what its start takes."""
    seconds = []
    for count in (FEW, MORE):
        training = training_of(settings, count, [])
        begin = time.perf_counter()
        rllc.train(
            config_of(settings, num_layers, data.vocab_size),
            data.base,
            training=training,
            device=settings.device,
            progress=False,
        )
        seconds.append(time.perf_counter() - begin)
    return max(seconds[1] - seconds[0], 0.0) / (MORE - FEW)
