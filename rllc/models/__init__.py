"""Models and their checkpoints.

Importing this package does not import transformers; using a model does.

Public checkpoints
==================

What loads, with no more than its name. Each line is tested on small files of exactly that form; the
hub itself is not asked in tests.

=====================================  ========================================  =================
repository, for example                its checkpoints                           positions, steps
=====================================  ========================================  =================
``EleutherAI/pythia-14m``, …           a branch a step, ``step512``; half        of the model
(and ``-deduped``)                     precision; masks and frequencies of old
                                       releases are left out
``allenai/OLMo-1B-hf``, …              a branch a step,                          of the model
                                       ``step1000-tokens4B``; several files
``allenai/OLMo-2-0425-1B``, …          branches ``stage1-step1000-tokens3B``;    of the model
                                       choose a stage with
                                       ``revision="stage1-*"``
``stanford-crfm/alias-gpt2-small-x21`` a branch a step, ``checkpoint-400000``;   of the model
                                       GPT-2 without the prefix of its names
``NeelNanda/Attn_Only_2L512W_C4_Code`` TransformerLens's toy models              in the settings;
                                       ``attn-only-2l``, …: ``model_final.pth``  steps are tokens
                                       or ``checkpoints/tokens_….pth``, older
                                       names of settings
``timaeus/…``, the paper's             one state dict a step,                    say
                                       ``checkpoint_0008500.pth``, without       ``positions=
                                       settings                                  "shortformer"``
=====================================  ========================================  =================

TransformerLens's toy models with MLPs (``gelu-2l``, ``solu-2l``) are refused by name: no model
class here is theirs. Any other folder, repository or state dict loads if its form is one of those
in :mod:`rllc.models.checkpoints`.

>>> model = load("EleutherAI/pythia-14m", 512)                                     # doctest: +SKIP
>>> every = checkpoints("allenai/OLMo-2-0425-1B", revision="stage1-*")             # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rllc.models.averaging import average
from rllc.models.checkpoints import Checkpoint, checkpoints
from rllc.models.loading import load

if TYPE_CHECKING:
    from rllc.models.attention_only import AttentionOnly as AttentionOnly
    from rllc.models.attention_only import AttentionOnlyConfig as AttentionOnlyConfig

__all__ = ["Checkpoint", "average", "checkpoints", "load"]


def __getattr__(name: str) -> Any:
    if name not in ("AttentionOnly", "AttentionOnlyConfig"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("rllc.models.attention_only"), name)
