"""Random streams: a function of their key alone, in every process."""

from __future__ import annotations

import torch

from rllc.seeds import generator, stable_hash


def test_a_stream_is_a_function_of_its_key() -> None:
    keys = [
        (0, "1:6", 2),
        (0, "1:6", 3),
        (0, "16", 2),
        (1, "1:6", 2),
        ((0, "1:6"), 2),
        ("0", "1:6", 2),
    ]
    streams = [torch.randn(4, generator=generator(*key)) for key in keys]
    assert torch.equal(torch.randn(4, generator=generator(*keys[0])), streams[0])
    assert len({tuple(s.tolist()) for s in streams}) == len(keys)


def test_keys_mean_the_same_in_every_process_and_version() -> None:
    assert (
        stable_hash("loss", 0, 7) == 2630522252473642349
    )  # so that results of earlier versions can be had again
    assert 0 <= stable_hash("x") < 2**63


def test_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    torch.randn(3, generator=generator("x"))
    assert torch.equal(before, torch.get_rng_state())
