"""Analyses of models and results; nothing else in rllc imports them, and each module is imported by its own name.

``volume``: λ as the slope of log V(t), from draws. ``attention``: attention patterns and scores of heads. ``ablation``:
what replacing a head's output does to the loss. ``patching``: what goes along one path from head to head.
``composition``: how much one head's output is another's input, from weights alone.
"""
