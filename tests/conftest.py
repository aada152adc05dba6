"""What holds for every test: real data is read where it is, and is never skipped in CI."""

import os

import pytest
from hypothesis import settings

from em.catalogue import DATA_ENV

# How long an example takes is the machine's business: a busy one must not fail a test.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, keep what starts Ray or an engine on one worker, one after the other.

    They share what is slow to start, and two Rays on one machine disturb each other.
    """
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("engines"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") is None or os.environ.get(DATA_ENV):
        return
    reason = f"{DATA_ENV} is not set: it names the folder of the public data"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason}, which is never skipped where CI is set", pytrace=False)
    pytest.skip(reason)
