"""Folders of images: pixels and classes, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rllc

Image = pytest.importorskip("PIL.Image")


def write(folder: Path, shape: tuple[int, ...] = (3, 4, 3)) -> dict[str, np.ndarray]:
    """Two images of cats and one of a dog, by class and name."""
    random = np.random.default_rng(0)
    images = {}
    for name in ("dog/a.png", "cat/b.png", "cat/a.png"):
        images[name] = random.integers(0, 256, shape, dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[name]).save(folder / name)
    return images


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 4)])
def test_images_are_pixels_from_0_to_1_and_classes_in_order(tmp_path, shape) -> None:
    images = write(tmp_path, shape)
    (tmp_path / "notes.txt").write_text("no image")
    data = rllc.data.as_data(tmp_path)
    pixels, labels = data.take(torch.arange(3), torch.device("cpu"))
    assert labels.tolist() == [0, 0, 1]
    channels = 1 if len(shape) == 2 else 3
    assert pixels.shape == (3, channels, 3, 4)
    for row, name in enumerate(("cat/a.png", "cat/b.png", "dog/a.png")):
        for y in range(3):
            for x in range(4):
                expected = np.atleast_1d(images[name][y, x]) / 255
                assert pixels[row, :, y, x].numpy() == pytest.approx(expected, abs=1e-6)


def test_a_classifier_of_a_folder_has_an_llc(tmp_path) -> None:
    write(tmp_path)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    sampling = rllc.Sampling(num_draws=4, num_chains=2, num_probes=0)
    loss = rllc.losses.classification
    compute = rllc.Compute(progress=False)
    estimate = rllc.estimate(model, tmp_path, loss=loss, sampling=sampling, compute=compute)
    assert np.isfinite(estimate.value[0])


def test_images_of_several_sizes_and_damaged_ones_are_named(tmp_path) -> None:
    write(tmp_path)
    Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(tmp_path / "dog" / "b.png")
    with pytest.raises(rllc.InputError, match=r"of one size, but .*b\.png is 5 × 5 × 3"):
        rllc.data.as_data(tmp_path)
    (tmp_path / "dog" / "b.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(rllc.FileError, match=r"b\.png: not an image, or damaged"):
        rllc.data.as_data(tmp_path)


def test_more_images_than_memory_holds_are_refused(tmp_path, monkeypatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("rllc.data.images._IN_MEMORY", 400)
    with pytest.raises(rllc.InputError, match=r"3 images of 4 × 3 .* give a DataLoader"):
        rllc.data.as_data(tmp_path)
