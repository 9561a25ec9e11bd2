"""How runs are evaluated: many chains of many refinements in one pass through the model."""
