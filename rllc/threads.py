"""How many threads torch computes with: one for a small model, else as many as gain something.

Torch takes one thread a core. They meet after each product, some hundred times a training step,
and whoever comes first spins until the last is there. Where another process holds one of the
cores, each meeting lasts until the scheduler takes the core away from it: milliseconds instead of
microseconds, so that a step on two threads takes ten to a hundred times as long as on one.

A number that the user has set stays: by ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, or by
``torch.set_num_threads`` after ``import rllc``. Results on different numbers of threads agree to
float32 rounding; with one number they are equal bit for bit.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn

SMALL = 1_000_000
"""Weights, times runs, below which a second thread gains little even where a core is idle."""

GAIN = 1.2
"""How many times faster twice the threads must be. Below, they had better be left to others."""

_AT_IMPORT = torch.get_num_threads()


@contextmanager
def chosen_for(model: nn.Module, runs: int = 1) -> Iterator[int]:
    """Compute with the number of threads that suits a model, then with as many as before.

    >>> with chosen_for(nn.Linear(3, 4)):
    ...     torch.get_num_threads()
    1

    Args:
        model: what is trained or sampled.
        runs: how many copies of it are computed at the same time.

    Yields:
        The number of threads.
    """
    with using(choose(model, runs)) as number:
        yield number


@contextmanager
def using(number: int) -> Iterator[int]:
    """Compute with this many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield number
    finally:
        torch.set_num_threads(before)


def choose(model: nn.Module, runs: int = 1) -> int:
    """The number of threads that suits a model.

    One, for a model of fewer than a million weights, counted once for each run. For a larger one,
    as many as :func:`fastest` measures, of those that torch has and the system allows. On another
    device than the CPU, and where the user has set the number, that which torch has.

    Args:
        model: what is trained or sampled.
        runs: how many copies of it are computed at the same time.
    """
    torch_has = torch.get_num_threads()
    if set_by_user() or not on_cpu(model):
        return torch_has
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights * runs < SMALL:
        return 1
    return _measured_once(min(torch_has, available_cpus()))


@cache
def _measured_once(limit: int) -> int:
    """Once a process, so that equal calls compute with equally many threads and give equal bits."""
    return fastest(limit)


def set_by_user() -> bool:
    """Whether the environment sets the number of threads, or it has changed since the import."""
    in_environment = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    return bool(in_environment) or torch.get_num_threads() != _AT_IMPORT


def on_cpu(model: nn.Module) -> bool:
    """Whether all parameters of a model are on the CPU."""
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


_ROUNDS = 5
"""How often each two numbers of threads are compared, in turn; the median counts."""


def fastest(limit: int, seconds: Callable[[int], float] | None = None) -> int:
    """The number of threads with which torch is fastest here and now, at most ``limit``.

    Doubles the number as long as that makes a product and an exponential, of the sizes that a
    small transformer has, at least 1.2 times as fast. Takes a few hundredths of a second, and a
    few tenths where the machine is busy.

    Args:
        limit: the largest number.
        seconds: the time that some work takes on a number of threads.
    """
    seconds = seconds or seconds_of_a_product
    number = 1
    while number < limit:
        more = min(2 * number, limit)
        # Side by side, since what else the machine does changes from one moment to the next.
        gains = [seconds(number) / seconds(more) for _ in range(_ROUNDS)]
        if statistics.median(gains) < GAIN:
            break
        number = more
    return number


def seconds_of_a_product(number: int) -> float:
    """The time of logits and their exponentials for 2048 tokens, on this many threads."""
    hidden = torch.full((2048, 64), 0.01)
    unembedding = torch.full((64, 1024), 0.01)
    with using(number):
        start = time.perf_counter()
        (hidden @ unembedding).exp_()
        return time.perf_counter() - start


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy, at least 1.

    The smallest of: those of the machine, those of the process's affinity mask, and the quota of
    each control group that it is in, such as a container's.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for folder in control_groups(root):
        cpus = quota(folder)
        if cpus is not None:
            count = min(count, math.floor(cpus))
    return max(1, count)


def control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process, those above them included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree and no names of controllers; version 1 a tree for each of them.
        for tree in dict.fromkeys([controllers, "cpu" if controllers else ""]):
            mount = root / "sys/fs/cgroup" / tree
            group = mount / path.lstrip("/")
            yield group
            yield from (folder for folder in group.parents if folder.is_relative_to(mount))


def quota(folder: Path) -> float | None:
    """CPUs that a control group may use, of version 2 or 1; ``None`` without a limit."""
    try:
        if (folder / "cpu.max").exists():
            share, period = (folder / "cpu.max").read_text().split()
        else:
            share = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if share.strip() in ("max", "-1"):
            return None
        return int(share) / int(period)
    except (OSError, ValueError):
        return None
