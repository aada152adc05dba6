"""The answer to drift, as a user gives it. Alone here, as the command line must start at once."""

from enum import StrEnum


class Keep(StrEnum):
    """Which of two counts where finished work was made from other things than are here now."""

    STORED = "stored"
    CURRENT = "current"
