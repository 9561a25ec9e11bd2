"""Texts, tokenizers, rows of tokens and minibatches.

Importing this package imports neither transformers nor datasets.
"""

from __future__ import annotations

from rllc.data import synthetic
from rllc.data.corpus import python_corpus
from rllc.data.data import Batch, Data, Tensors
from rllc.data.given import as_data
from rllc.data.minibatches import Minibatches
from rllc.data.packing import tokenize
from rllc.data.pile import PILE_SUBSETS, load_pile, pile_texts
from rllc.data.tokenizer import load_tokenizer, train_tokenizer
from rllc.data.tokens import Tokens, mix

__all__ = [
    "PILE_SUBSETS",
    "Batch",
    "Data",
    "Minibatches",
    "Tensors",
    "Tokens",
    "as_data",
    "load_pile",
    "load_tokenizer",
    "mix",
    "pile_texts",
    "python_corpus",
    "synthetic",
    "tokenize",
    "train_tokenizer",
]
