"""What the README says is there, is there."""

import re
from pathlib import Path

from sweeps.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"^emsweep ([\w-]+)", README, flags=re.M))
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert named == known | {group.name for group in app.registered_groups}


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^make ([\w-]+)", README, flags=re.M)) <= targets


def test_every_link_within_the_project_leads_somewhere() -> None:
    for page in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_top_level_is_what_it_must_be() -> None:
    wanted = {"sweeps", "em", "cluster", "configs", "notebooks", "tests", "pyproject.toml"}
    assert wanted <= {path.name for path in ROOT.iterdir()}
