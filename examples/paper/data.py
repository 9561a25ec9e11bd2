"""What a model is trained on, and what estimates are refined to: a synthetic language or texts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import rllc
from rllc.analysis.brackets import brackets
from rllc.data.synthetic import Language

from .settings import Settings

TEXTS_FOR_TOKENIZER = 20_000


@dataclass(frozen=True)
class Data:
    """What one seed's model is trained on and looked at with."""

    base: rllc.Tokens
    subsets: Mapping[str, rllc.Tokens]
    """The first is the one that induction heads are for."""
    repeats: rllc.Tokens | None
    """Rows to measure attention on; ``None``: random tokens, repeated."""
    brackets: Mapping[int, Any]
    vocab_size: int
    tokenizer: Any = None

    @property
    def code(self) -> str:
        """Name of the first subset."""
        return next(iter(self.subsets))

    def random_rows(self, count: int, seed: int, part: int = 0) -> rllc.Tokens:
        """Random rows of ``base``, since neighbours are often of one document.

        Different ``part`` of one ``seed`` have no row in common.
        """
        order = np.random.default_rng(seed).permutation(len(self.base))
        rows = order[part * count : (part + 1) * count]
        return self.base[rows.tolist()]


def read_data(settings: Settings, seeds: Iterable[int]) -> dict[int, Data]:
    """The data of each seed: a language drawn anew, or the same texts for all."""
    if settings.size == "tiny":
        return {seed: language_data(settings, seed) for seed in seeds}
    texts = text_data(settings)
    return dict.fromkeys(seeds, texts)


def language_data(settings: Settings, seed: int) -> Data:
    """Rows of the synthetic language, and of two of its rules alone."""
    language = Language(vocab_size=settings.vocab, context_length=settings.context)
    rows_of_subset = settings.train_rows // 5
    return Data(
        base=language.sample(settings.train_rows, seed + 1).tokens,
        subsets={
            name: language.sample(rows_of_subset, seed + 1, name).tokens
            for name in ("induction", "ngram")
        },
        repeats=language.sample(64, seed + 1000, "induction").tokens,
        brackets=language.brackets,
        vocab_size=settings.vocab,
    )


def text_data(settings: Settings) -> Data:
    """Rows of the Pile, or of what Python brings, with a tokenizer trained on them."""
    if settings.data is None:
        documents_of = rllc.data.python_corpus()
        texts: dict[str, Iterable[str]] = {name: iter(d) for name, d in documents_of.items()}
        documents = [text for subset in documents_of.values() for text in subset]
        for_tokenizer: Iterable[str] = documents
        shuffled = np.random.default_rng(0).permutation(np.array(documents, dtype=object))
        all_texts: Iterable[str] = iter(shuffled)
    else:
        texts = {name: subset_texts(settings, name) for name in settings.subsets or ()}
        for_tokenizer = islice(rllc.data.pile_texts(source=settings.data), TEXTS_FOR_TOKENIZER)
        all_texts = rllc.data.pile_texts(source=settings.data)
    folder = settings.tokenizer or own_tokenizer(settings, for_tokenizer)
    tokenizer = rllc.data.load_tokenizer(folder)

    def packed(name: str, documents: Iterable[str], num_rows: int) -> rllc.Tokens:
        bar = tqdm(documents, desc=f"tokenizing {name}", unit="text", disable=settings.quiet)
        return rllc.data.tokenize(bar, tokenizer, settings.context, name=name, num_rows=num_rows)

    rows_of_subset = min(settings.train_rows // 5, 20_000)
    return Data(
        base=packed("all", all_texts, settings.train_rows),
        subsets={name: packed(name, subset, rows_of_subset) for name, subset in texts.items()},
        repeats=None,
        brackets=brackets(tokenizer, ("()", "[]", "{}")),
        vocab_size=len(tokenizer),
        tokenizer=tokenizer,
    )


def subset_texts(settings: Settings, name: str) -> Iterable[str]:
    """Texts of one subset of the Pile; they are read later, and only as far as needed."""
    source = settings.subset_data or settings.data
    assert source is not None
    if "{}" in source:
        return rllc.data.pile_texts(source=source.format(name))
    return rllc.data.pile_texts(name, source=source)


def own_tokenizer(settings: Settings, texts: Iterable[str]) -> Path:
    """The folder of a tokenizer trained on these texts."""
    folder = settings.out / f"tokenizer-{settings.vocab}"
    if not folder.exists():
        # A run that is killed here leaves no half-written tokenizer under the final name.
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        tokenizer = rllc.data.train_tokenizer(texts, vocab_size=settings.vocab)
        tokenizer.save_pretrained(unfinished)
        unfinished.replace(folder)
    return folder
