"""A test of real data is skipped where the data is not there, but never where CI is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from em.catalogue import DATA_ENV

ONE = f"{Path(__file__).parent}/test_questions.py::test_the_first_plot_questions"


@pytest.mark.parametrize(
    ("ci", "code", "says"),
    [("", 0, "1 skipped"), ("true", 1, "never skipped where CI is set")],
)
def test_real_data_that_is_not_there(ci: str, code: int, says: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != DATA_ENV}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ONE],
        env=environment | {"CI": ci},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stdout
    assert says in ran.stdout
    assert f"{DATA_ENV} is not set" in ran.stdout
