"""The rows of the benchmark, in the table's order: a module each, which says what it measures."""

from tests.benchmarks.rows import (
    p1_adapters,
    p2_training,
    p3_overhead,
    p4_judging,
    p5_start,
    p6_quickstart,
)

ROWS = (
    p1_adapters.ROW,
    p2_training.ROW,
    p3_overhead.ROW,
    p4_judging.ROW,
    p5_start.ROW,
    p6_quickstart.ROW,
)
