"""Where the words of a figure lie, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def box_of(text: Text) -> Bbox:
    """Not by an annotation's own method, which also covers its line."""
    return Text.get_window_extent(text)


def apart(figure: Figure, texts: Sequence[Text]) -> bool:
    """Whether no two texts have a pixel in common in the finished figure."""
    figure.canvas.draw()
    boxes = [box_of(text) for text in texts]
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def written(texts: Sequence[Text]) -> list[str]:
    return [text.get_text() for text in texts]
