"""From draws to numbers: λ̂, its error, and what is wrong with it."""
