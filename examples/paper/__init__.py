"""The paper as one pipeline; ``python -m examples.paper --help`` says how to run it."""
