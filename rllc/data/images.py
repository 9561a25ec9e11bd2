"""Folders of images, one folder a class, without torchvision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from rllc.data.data import Tensors
from rllc.errors import FileError, InputError, first_line

ENDS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Ends of names of images."""

_IN_MEMORY = 2**31
"""Bytes of pixels that are read at most."""


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds folders of images."""
    return folder.is_dir() and bool(_images(folder))


def _images(folder: Path) -> list[tuple[str, Path]]:
    """The class of each image, and its file, in order of their names."""
    images = []
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in ENDS and not path.name.startswith("."):
            images.append((path.parent.name, path))
    return images


def read_images(folder: Path, name: str) -> Tensors:
    """Read images as pixels ``[row, channel, y, x]``, from 0 to 1, and their classes ``[row]``.

    Classes are numbered in the order of their folders' names, as in torchvision's ImageFolder.

    Raises:
        InputError: images are of several sizes, or more than memory should hold, or Pillow is not
            installed.
        FileError: one cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"`data` {name!r}: a folder of images needs Pillow; type: pip install pillow"
        ) from error
    images = _images(folder)
    classes = sorted({label for label, _ in images})
    pixels = []
    first: tuple[int, ...] | None = None
    for _, path in images:
        try:
            with Image.open(path) as image:
                num_bands = len(image.getbands())
                shape = (*image.size, num_bands)
                first = first or shape
                _check(folder, name, path, shape, first, len(images))
                mode = "RGB" if num_bands > 1 else "L"
                converted = image.convert(mode)
                pixels.append(np.asarray(converted, dtype=np.uint8))
        except InputError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise FileError(
                f"reading {path}: not an image, or damaged ({first_line(error)})."
            ) from error
    stacked = torch.from_numpy(np.stack(pixels)).float() / 255
    if stacked.dim() == 3:
        by_channel = stacked[:, None]
    else:
        by_channel = stacked.permute(0, 3, 1, 2)
    labels = torch.tensor([classes.index(label) for label, _ in images])
    return Tensors((by_channel.contiguous(), labels), name)


def _check(
    folder: Path, name: str, path: Path, shape: tuple[int, ...], first: tuple[int, ...], count: int
) -> None:
    """Refuse an image of another size, and more of them than fit, before its pixels are read."""
    if shape != first:
        size = " × ".join(map(str, shape))
        size_of_others = " × ".join(map(str, first))
        raise InputError(
            f"`data` {name!r}: images must be of one size, but {path} is {size} and others in "
            f"{folder} are {size_of_others}; give a DataLoader that resizes them as in training."
        )
    bytes_of_image = 4 * math.prod(shape)
    if count * bytes_of_image > _IN_MEMORY:
        raise InputError(
            f"`data` {name!r}: {count:,} images of {shape[0]} × {shape[1]} in {folder} are more "
            f"than memory should hold; give a DataLoader of them, or a folder of fewer."
        )
