"""What is sent to a cluster: the code and what the spec names, and nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import JUDGE_PROMPTS, QUESTIONS, SPEC

from em.catalogue import CACHE_ENV
from sweeps.packing import check_sendable, pack
from sweeps.spec import load_spec

ROOT = Path(__file__).resolve().parent.parent
DEMONSTRATION = {"name": "demo", "dataset": "quickstart_insecure", "rows": 8}
# In two parts, so that no file of the tree looks as if it held one.
KEYS = {
    "OpenAI": "sk-" + "proj-" + "x1" * 20,
    "Anthropic": "sk-" + "ant-api03-" + "x" * 30,
    "AWS": "AKIA" + "A7" * 8,
    "GitHub": "ghp_" + "a1" * 18,
    "GitHub's newer": "github_pat_" + "a1" * 20,
    "Hugging Face": "hf_" + "aB3" * 11,
    "W&B": "WANDB_API_KEY: " + "0a" * 20,
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "password": "postgres://me:" + "hunter2" + "@host/base",
}


def project(folder: Path, **changes: Any) -> Path:
    """A folder of someone who has more there than the spec names; return the spec."""
    folder.mkdir()
    (folder / ".env").write_text("OPENAI_API_KEY=nothing-to-be-sent\n")
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "notes.yaml").write_text("of: mine\n")
    (folder / "emsweep-store" / "training").mkdir(parents=True)
    (folder / "emsweep-store" / "training" / "record.json").write_text("{}")
    (folder / "ours.yaml").write_text(QUESTIONS)
    (folder / "prompts.yaml").write_text(JUDGE_PROMPTS)
    spec = {**SPEC, "variants": [{"name": "none"}, DEMONSTRATION], **changes}
    (folder / "small.yaml").write_text(yaml.safe_dump(spec))
    return folder / "small.yaml"


def packed(spec: Path, folder: Path) -> set[str]:
    """The paths of what is sent."""
    folder.mkdir()
    assert pack(spec, load_spec(spec), folder) == Path("spec") / spec.name
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_code_configs_and_named_files_are_sent_and_nothing_else(tmp_path: Path) -> None:
    judges = [{"name": "self", "pool": "base", "prompts": "prompts.yaml"}]
    sent = packed(project(tmp_path / "project", judges=judges), tmp_path / "sent")
    own = {name for name in sent if name.startswith("spec/")}
    assert own == {"spec/small.yaml", "spec/ours.yaml", "spec/prompts.yaml"}
    shipped = {
        str(path.relative_to(ROOT))
        for package in ("em", "cluster", "sweeps", "configs")
        for path in (ROOT / package).rglob("*")
        if path.is_file()
    }
    assert sent - own - {"sent-from-commit.txt"} <= shipped
    code = {name for name in shipped if name.endswith(".py") and not name.startswith("configs")}
    assert code <= sent
    data = {name for name in sent if name.endswith((".jsonl", ".gz", ".parquet"))}
    assert data == {"configs/datasets/quickstart_insecure.jsonl"}


def test_the_copy_runs_without_the_checkout(tmp_path: Path) -> None:
    packed(project(tmp_path / "project"), tmp_path / "sent")
    environment = {
        "PATH": "/usr/bin:/bin", CACHE_ENV: str(tmp_path / "cache"), "HOME": str(tmp_path),
    }  # fmt: skip

    def said(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path / "sent", env=environment,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = said("-c", "import em, cluster, sweeps; print(em.__file__, sweeps.__file__)")
    assert all(Path(place).is_relative_to(tmp_path / "sent") for place in where.split())
    out = said("-m", "sweeps.cli", "plan", "spec/small.yaml", "--store", str(tmp_path / "store"))
    assert "small: 4 cells" in out
    tell = "from sweeps.provenance import commit; print(commit())"
    assert (
        said("-c", tell)
        == subprocess.run(
            [sys.executable, "-c", tell], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.parametrize("maker", KEYS)
@pytest.mark.parametrize("name", ["small.yaml", "ours.yaml"])
def test_a_key_is_told_by_file_and_line_and_not_shown(
    maker: str, name: str, tmp_path: Path
) -> None:
    spec = project(tmp_path / "project")
    named = spec.parent / name
    lines = len(named.read_text().splitlines())
    named.write_text(named.read_text() + f"# see {KEYS[maker]}\n")
    with pytest.raises(ValueError) as told:
        packed(spec, tmp_path / "sent")
    assert f"{name}, line {lines + 1}," in str(told.value)
    assert KEYS[maker].split(": ")[-1] not in str(told.value)


def test_what_only_looks_a_little_like_a_key_is_sent(tmp_path: Path) -> None:
    place = tmp_path / "file.yaml"
    place.write_text(
        "revision: " + "0a" * 20 + "\napi: https://api.openai.com/v1\napi_key_env: OPENAI_API_KEY\n"
        "text: a risk-averse-and-very-careful-person asks user@host\n"
    )
    assert check_sendable(place) == place.read_bytes()


def test_a_very_large_file_is_no_question_file(tmp_path: Path) -> None:
    place = tmp_path / "file.yaml"
    with place.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ValueError, match=r"16,777,217 bytes; at most 16,777,216"):
        check_sendable(place)


def test_a_file_above_the_spec_keeps_its_place(tmp_path: Path) -> None:
    spec = project(tmp_path / "project", evaluations=[{"name": "main", "questions": "../q.yaml"}])
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    assert {"q.yaml", "spec/small.yaml"} <= packed(spec, tmp_path / "sent")


@pytest.mark.parametrize("name", ["../../q.yaml", "../em/record.py"])
def test_a_file_that_would_leave_the_copy_or_replace_code_is_refused(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    folder.parent.mkdir()
    spec = project(folder, evaluations=[{"name": "main", "questions": name}])
    named = folder / name
    named.parent.mkdir(exist_ok=True)
    named.write_text(QUESTIONS)
    with pytest.raises(ValueError, match=rf"small\.yaml names '{name}'.*beside the spec"):
        packed(spec, tmp_path / "sent")


@pytest.mark.parametrize("dataset", ["rows.jsonl", "./rows.jsonl", "a-folder"])
def test_data_of_this_machine_is_refused(dataset: str, tmp_path: Path) -> None:
    spec = project(tmp_path / "project", variants=[{"name": "mine", "dataset": dataset}])
    (spec.parent / "a-folder").mkdir()
    with pytest.raises(ValueError, match=rf"variant 'mine'.*'{dataset}'.*absolute path"):
        packed(spec, tmp_path / "sent")


def test_data_by_an_absolute_path_is_the_clusters(tmp_path: Path) -> None:
    variants = [{"name": "mine", "dataset": "/shared/rows.jsonl"}]
    sent = packed(project(tmp_path / "project", variants=variants), tmp_path / "sent")
    assert not [name for name in sent if name.endswith(".jsonl")]


@pytest.mark.parametrize("place", ["models", "judges"])
def test_a_model_folder_of_this_machine_is_refused(place: str, tmp_path: Path) -> None:
    model = {"name": "tuned", "folder": "weights/tuned"}
    changes: dict[str, Any] = {
        "models": {"models": [{"name": "base", "bundled": "smollm2-135m"}, model]},
        "judges": {"judges": [{"name": "other", "model": model}]},
    }[place]
    with pytest.raises(
        ValueError, match=r"'tuned' is in the folder 'weights/tuned'.*absolute path"
    ):
        packed(project(tmp_path / "project", **changes), tmp_path / "sent")
