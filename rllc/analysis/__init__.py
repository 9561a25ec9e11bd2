"""Analyses of models and of results. Nothing else in rllc imports them.

Each module is imported by its own name:

- Heads: ``attention`` (scores) and ``patterns`` (where heads look), ``ablation`` (what replacing a
  head's output does to the loss), ``patching`` (what one path carries from head to head),
  ``circuit`` (heads and paths ablated together), ``composition`` (how much one head's output is
  another's input, from weights alone), ``tokens_in_context`` (the tokens a head matters most for,
  and what explains them, beyond chance), ``brackets`` (which tokens are brackets), ``pages`` (an
  HTML page a head) and ``roles`` (a role for each head, with the evidence: :func:`classify`).
- The loss: ``curvature`` (traces, rank and extreme eigenvalues of the Hessian, and Fisher
  information, in chosen weights), ``spectrum`` (the same for any matrix) and ``volume`` (λ as the
  slope of log V(t), from draws).
- Curves over training: ``clustering`` and ``stages``.
"""

from __future__ import annotations

from rllc.analysis.roles import classify

__all__ = ["classify"]
