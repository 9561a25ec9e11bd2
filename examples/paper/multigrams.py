"""Which tokens n-grams of the training data predict: simple multigrams, and complex ones."""

from typing import NamedTuple

import numpy as np

import rllc

LIKELY = 0.5
UNLIKELY = 0.2
OFTEN = 10
ROWS_AT_ONCE = 10_000


def multigram_masks(training: rllc.Tokens, rows: rllc.Tokens, vocab: int) -> dict[str, np.ndarray]:
    """Tokens that a bigram predicts, and those that only the two tokens before them predict.

    A token is predicted if it followed the same tokens at least half of at least 10 times in
    training. A complex one followed the last of them in less than a fifth.

    Args:
        training: rows that n-grams are counted in.
        rows: rows whose tokens are looked at.
        vocab: number of token ids.

    Returns:
        Masks ``[row, pos]`` named ``"simple"`` and ``"complex"``.
    """
    ids = rows.rows.numpy()
    after_one, times_one = chances(training, ids, 1, vocab)
    after_two, times_two = chances(training, ids, 2, vocab)
    bigram = (after_one >= LIKELY) & (times_one >= OFTEN)
    trigram = (after_two >= LIKELY) & (times_two >= OFTEN)
    return {
        "simple": bigram,
        "complex": trigram & (after_one < UNLIKELY),
    }


def chances(
    training: rllc.Tokens, ids: np.ndarray, order: int, vocab: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each token followed the ``order`` tokens before it in training.

    Returns:
        The share ``[row, pos]``, and of how many times that is.
    """
    contexts = Window(order, 1, vocab)
    with_token = Window(order, 0, vocab)
    times_context = occurrences(training, ids, contexts)
    times_token = occurrences(training, ids, with_token)
    share = times_token / np.maximum(times_context, 1)
    return share, times_context


class Window(NamedTuple):
    """The tokens from ``first`` to ``last`` places back."""

    first: int
    last: int
    vocab: int

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Each window as one number, from position ``first`` on."""
        num_positions = rows.shape[1]
        number = np.zeros((len(rows), num_positions - self.first), dtype=np.int64)
        for back in range(self.first, self.last - 1, -1):
            tokens = rows[:, self.first - back : num_positions - back]
            number = number * self.vocab + tokens
        return number


def occurrences(training: rllc.Tokens, ids: np.ndarray, window: Window) -> np.ndarray:
    """How often each window of ``ids`` is in training; 0 at the first positions ``[row, pos]``."""
    numbers = window.numbers(ids)
    distinct, inverse = np.unique(numbers, return_inverse=True)
    counts = np.zeros(len(distinct), dtype=np.int64)
    # Training data may be large: some rows at a time.
    for start in range(0, len(training), ROWS_AT_ONCE):
        rows = training.rows[start : start + ROWS_AT_ONCE]
        in_training = window.numbers(rows.numpy()).ravel()
        places = np.searchsorted(distinct, in_training)
        places = places.clip(max=len(distinct) - 1)
        matching = places[distinct[places] == in_training]
        counts += np.bincount(matching, minlength=len(distinct))
    times = counts[inverse].reshape(numbers.shape)
    first_positions = ((0, 0), (window.first, 0))
    return np.pad(times, first_positions)
