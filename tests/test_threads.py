"""The number of threads: what the user sets stays, small models have one, and limits are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rllc import threads

SMALL_MODEL = nn.Linear(10, 10)
LARGE_MODEL = nn.Linear(1000, 1000)


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch):
    """As after an import on a machine of four idle cores, without any wish of the user."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_AT_IMPORT", 4)
    monkeypatch.setattr(threads, "available_cpus", lambda: 4)
    monkeypatch.setattr(threads, "seconds_of_a_product", lambda number: 1 / number)
    with threads.using(4):
        yield


@pytest.mark.usefixtures("four_threads")
def test_a_small_model_has_one_thread_and_a_large_one_what_is_fastest() -> None:
    assert threads.choose(SMALL_MODEL) == 1
    assert threads.choose(LARGE_MODEL) == 4
    assert threads.choose(SMALL_MODEL, runs=10_000) == 4


@pytest.mark.usefixtures("four_threads")
def test_the_number_is_put_back() -> None:
    with threads.chosen_for(SMALL_MODEL) as number:
        assert number == torch.get_num_threads() == 1
        with threads.chosen_for(LARGE_MODEL) as inner:
            assert inner == 1  # the outer choice stays
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), threads.chosen_for(SMALL_MODEL):
        raise KeyError
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_environment_says_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    assert threads.choose(SMALL_MODEL) == 4


@pytest.mark.usefixtures("four_threads")
def test_what_the_user_sets_after_the_import_stays() -> None:
    with threads.using(3):
        assert threads.choose(SMALL_MODEL) == 3


@pytest.mark.usefixtures("four_threads")
def test_a_model_on_another_device_is_left_alone() -> None:
    assert threads.choose(nn.Linear(10, 10, device="meta")) == 4


@pytest.mark.usefixtures("four_threads")
def test_there_are_no_more_threads_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cpus", lambda: 2)
    assert threads.choose(LARGE_MODEL) == 2


@pytest.mark.parametrize(
    ("limit", "seconds", "number"),
    [
        (8, {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3}, 8),
        (6, {1: 1.0, 2: 0.6, 4: 0.4, 6: 0.3}, 6),
        (8, {1: 1.0, 2: 0.6, 4: 0.55, 8: 0.1}, 2),
        (2, {1: 1.0, 2: 40.0}, 1),
        (1, {}, 1),
    ],
)
def test_more_threads_must_gain(limit: int, seconds: dict[int, float], number: int) -> None:
    assert threads.fastest(limit, seconds.__getitem__) == number


def test_one_slow_moment_does_not_decide() -> None:
    times = iter([1.0, 9.0] + [1.0, 0.5] * 4)
    assert threads.fastest(2, lambda number: next(times)) == 2


def test_the_work_that_is_timed_is_done_on_that_many_threads(monkeypatch) -> None:
    during = []
    clock = threads.time.perf_counter
    monkeypatch.setattr(
        threads.time, "perf_counter", lambda: during.append(torch.get_num_threads()) or clock()
    )
    assert threads.seconds_of_a_product(3) > 0
    assert set(during) == {3}


LIMITS = [
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    (
        {
            "proc/self/cgroup": "0::/user/session\n",
            "sys/fs/cgroup/user/session/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
        },
        2,
    ),
    (
        {
            "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "50000\n",
        },
        5,
    ),
    (  # in a container, whose path is that of its host, but whose tree begins at itself
        {
            "proc/self/cgroup": "4:cpu:/docker/0123\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, 8),
    ({}, 8),
]


@pytest.mark.parametrize(("files", "cpus"), LIMITS)
def test_quotas_of_control_groups(files, cpus: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.available_cpus(tmp_path) == cpus


def test_an_affinity_mask_is_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert threads.available_cpus(tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("wish", "answer"), [("2", "as torch"), (None, "1")])
def test_the_choice_in_a_fresh_process(wish: str | None, answer: str) -> None:
    """With and without a wish in the environment; children of the tests inherit one."""
    code = (
        "import torch; from rllc import threads; "
        "number = threads.choose(torch.nn.Linear(2, 2)); "
        "print('as torch' if number == torch.get_num_threads() > 1 else number)"
    )
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one CPU: there is nothing to choose")
    # Other libraries limit threads in the environment when a test imports them.
    environment = {name: text for name, text in os.environ.items() if "THREAD" not in name}
    environment["PYTHONPATH"] = str(Path(threads.__file__).parents[1])
    if wish is not None:
        environment["OMP_NUM_THREADS"] = wish
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer
