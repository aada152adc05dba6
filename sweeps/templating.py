"""The templates of all pages: everything is escaped, and a number that is not there is a dash.

Knows nothing of what a page shows.
"""

from collections.abc import Callable

import jinja2


def environment(**filters: Callable[..., str]) -> jinja2.Environment:
    """Return the templates, with `percent`, `small` and the page's own `filters`."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeps", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "small": small, **filters}
    return made


def percent(value: float | None) -> str:
    """Return a share as a percentage, and a dash where there is none: never a zero."""
    return "–" if value is None else f"{value * 100:.1f} %"


def small(value: float | None) -> str:
    """Return a number with two digits that say something, and a dash where there is none."""
    return "–" if value is None else f"{value:.2g}"
