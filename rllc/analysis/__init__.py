"""Analyses of models and of results; nothing else in rllc imports them, and each module is imported by its own name.

- Heads: ``attention`` (patterns and scores), ``ablation`` (what replacing a head's output does to the loss), ``patching``
  (what goes along one path from head to head), ``circuit`` (heads and paths taken out together), ``composition`` (how much
  one head's output is another's input, from weights alone), ``tokens_in_context`` (the tokens a head matters most for, and
  their kinds), ``pages`` (an HTML page a head), ``roles`` (a role for each head, with the evidence: :func:`classify`).
- The loss: ``curvature`` (traces, rank and extreme eigenvalues of the Hessian, and Fisher information, in chosen weights),
  ``spectrum`` (the same for any matrix), ``volume`` (λ as the slope of log V(t), from draws).
- Curves over training: ``clustering``, ``stages``.
"""

from __future__ import annotations

from rllc.analysis.roles import classify

__all__ = ["classify"]
