"""What holds for every file of the tree: no secrets, a docstring each, no function to scroll."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for name in ("em", "cluster", "sweeps") for p in (ROOT / name).rglob("*.py"))
MAX_LINES = 60
# Of the data sets that we ship: short programs with invented passwords in them.
DEMO_DATA = {ROOT / "configs/datasets/quickstart_insecure.jsonl"}
NOT_OURS = {
    ".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis",
    ".import_linter_cache", "emsweep-store", "wandb", "dist",
}  # fmt: skip
SECRETS = {
    "AWS key id": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret": r"(?i)aws.{0,20}secret.{0,20}[=:]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "W&B key": r"(?i)(?:wandb|api).{0,20}key[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in an address": r"\w+://[^\s/:@{}]+:[^\s/:@{}]+@[\w.-]+",
}


def secrets(text: str) -> list[str]:
    return [name for name, pattern in SECRETS.items() if re.search(pattern, text)]


def files() -> list[Path]:
    found = [p for p in ROOT.rglob("*") if not set(p.relative_to(ROOT).parts) & NOT_OURS]
    return [path for path in found if path.is_file() and path not in DEMO_DATA]


def test_there_is_no_secret_in_the_tree() -> None:
    texts = {path: path.read_bytes().decode("utf-8", "replace") for path in files()}
    assert ROOT / "pyproject.toml" in texts
    assert {str(path): found for path, text in texts.items() if (found := secrets(text))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AWS key id", "key = 'AKIA" + "A7" * 8 + "'"),
        ("AWS secret", "aws_secret_access_key = " + "a/" * 20),
        ("Hugging Face token", "HF_TOKEN=hf_" + "aB3" * 11),
        ("OpenAI or Anthropic key", "sk-" + "ant-api03-" + "x" * 30),
        ("GitHub token", "ghp_" + "a1" * 18),
        ("W&B key", "WANDB_API_KEY: " + "0a" * 20),
        ("private key", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
        ("password in an address", "s3://me:" + "secret" + "@host"),
    ],
)
def test_a_secret_would_be_found(name: str, text: str) -> None:
    assert secrets(text) == [name]


def test_a_hash_or_a_plain_address_is_no_secret() -> None:
    assert secrets("revision: " + "0a" * 20 + " sha256: " + "0a" * 32) == []
    assert secrets("http://127.0.0.1:8000/v1 and api_key_env: OPENAI_API_KEY") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_no_function_is_long(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
