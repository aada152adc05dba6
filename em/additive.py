"""Each seed's mean over all questions, also where pairs of seed and question are missing.

Knows nothing of intervals.
"""

import numpy as np

from em.crossed import Crossed, Floats


def seed_means(table: Crossed) -> Floats:
    """Return each unit's mean over all questions, questions weighing alike, shape (units,).

    Where a pair is missing, the unit is given what an additive model says of it (least squares,
    within what a share can be): a unit is not better for lacking the question that most are bad at.
    NaN where units share no questions, so that nothing compares them.
    """
    if table.filled.all():
        whole: Floats = table.means.mean(axis=1)
        return whole
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import lsqr

    if not _is_connected(table):
        found = np.full(len(table.units), np.nan)
        return found
    rows, columns = np.nonzero(table.filled)
    units, questions = table.filled.shape
    count = np.arange(len(rows))
    design = coo_matrix(
        (
            np.ones(2 * len(rows)),
            (np.concatenate([count, count]), np.concatenate([rows, units + columns])),
        ),
        shape=(len(rows), units + questions),
    )
    wanted = table.means[rows, columns]
    found = lsqr(design.tocsr(), wanted, atol=1e-12, btol=1e-12)[0]
    by_unit: Floats = found[:units] + found[units:].mean()
    return np.clip(by_unit, 0.0, 1.0) if table.binary else by_unit


def _is_connected(table: Crossed) -> bool:
    """Whether all units can be compared: by questions that they share, or share with others."""
    from scipy.sparse import bmat, csr_matrix
    from scipy.sparse.csgraph import connected_components

    links = csr_matrix(table.filled.astype(np.int8))
    number, _ = connected_components(bmat([[None, links], [links.T, None]]), directed=False)
    return bool(number == 1)
