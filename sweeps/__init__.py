"""Which cells, in what order, and what they say together.

The only package that knows both `em` (what is done) and `cluster` (where it is done).
"""
