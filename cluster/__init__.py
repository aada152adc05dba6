"""Where work is done: join Ray, run a function on N ranks, serve a base model and its adapters.

Knows nothing of emergent misalignment: its callables and endpoints carry plain values.
"""
