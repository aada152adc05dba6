"""A calm terminal: what a person reads goes out, every library's noise goes into a log file.

Knows nothing of sweeps.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# Libraries that report home or warn about their own business, in every process of a sweep.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run; its state is in the store
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_ERROR_REPORTING": "false",  # its tracebacks name our paths; a silent server delays exit
}


@contextlib.contextmanager
def noise_to(log_path: Path) -> Iterator[TextIO]:
    """Send this process's and its children's output to `log_path`; yield the real output.

    Works on the file descriptors, because Ray and vLLM write from native code and other processes.
    Raises ValueError where the file cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ValueError(
            f"the libraries' output cannot be written to {log_path}: {error.strerror}"
        ) from error
    out, err = os.dup(1), os.dup(2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    real = os.fdopen(os.dup(out), "w", buffering=1)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        root.addHandler(handler)
        yield real
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        root.removeHandler(handler)
        os.dup2(out, 1)
        os.dup2(err, 2)
        for descriptor in (out, err, log):
            os.close(descriptor)
        real.close()


def printable(text: str) -> str:
    """Return `text` on one line in which nothing can steer a terminal.

    Control characters, line ends and characters that are not seen (such as those that turn the
    direction of writing) are shown as escapes: data, models and judges may write any.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
