"""What the environment says of W&B: its address, whether there is a key, and in which mode.

As the SDK reads it, without loading the SDK. Knows nothing of sweeps.
"""

import configparser
import contextlib
import netrc
import os
import urllib.parse
from pathlib import Path
from typing import Literal

from sweeps.settings import TrackingConfig

PUBLIC = "https://api.wandb.ai"
YES = ("1", "true", "yes", "on")


def base_url() -> str:
    """Return the address of W&B's server: of the environment, or as `wandb login` left it."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url.rstrip("/")
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path("~/.config/wandb").expanduser()
    written = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error):
        written.read(Path(folder) / "settings")
    return written.get("default", "base_url", fallback=PUBLIC).rstrip("/")


def has_key() -> bool:
    """Whether there is a key for W&B: in the environment, or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(base_url()).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def mode_of(config: TrackingConfig) -> Literal["online", "offline", "off"]:
    """Return what a sweep does: what its spec says or, for `auto`, what the environment does."""
    if config.mode != "auto":
        return config.mode
    said = os.environ.get("WANDB_MODE", "").lower()
    if said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in YES:
        return "off"
    return "online" if has_key() and said not in ("offline", "dryrun") else "offline"
