"""What holds for every test: real data is read where it is, and is never skipped in CI."""

import os

import pytest
from hypothesis import settings

from em.catalogue import DATA_ENV

# How long an example takes is the machine's business: a busy one must not fail a test.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") is None or os.environ.get(DATA_ENV):
        return
    reason = f"{DATA_ENV} is not set: it names the folder of the public data"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason}, which is never skipped where CI is set", pytrace=False)
    pytest.skip(reason)
