"""The scripts of configs/clusters, run with stand-ins for the programs that they call."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

CLUSTERS = Path(__file__).resolve().parent.parent / "configs/clusters"
CALLING = [path for path in CLUSTERS.iterdir() if path.suffix in (".sh", ".sbatch", ".yaml")]


def stand_in(folder: Path, name: str, body: str) -> None:
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)


def with_stand_ins(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(folder), "USER": "me"}


def test_a_node_whose_keys_cannot_be_read_does_not_start_ray(tmp_path: Path) -> None:
    (start,) = [
        c
        for c in yaml.safe_load((CLUSTERS / "aws.yaml").read_text())["worker_start_ray_commands"]
        if "ray start" in c
    ]
    (tmp_path / "em-sweeps-cluster").symlink_to(CLUSTERS)
    keys = "WANDB_API_KEY=a-key\nOPENAI_API_KEY=another"
    for aws, started in ((f"echo '{keys}'", True), ("echo away >&2; exit 255", False)):
        stand_in(tmp_path, "aws", aws)
        stand_in(tmp_path, "ray", f'echo "$OPENAI_API_KEY $@" >> {tmp_path / "ray.log"}')
        done = subprocess.run(
            ["bash", "-c", start],
            env=with_stand_ins(tmp_path) | {"HOME": str(tmp_path), "RAY_HEAD_IP": "10.0.0.1"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) == started, done.stderr
        log = tmp_path / "ray.log"
        assert log.exists() == started
        if started:
            assert log.read_text().startswith("another start --address=10.0.0.1:6379 ")
            log.unlink()


@pytest.mark.parametrize(
    ("cloud", "curl"),
    [
        ("aws", 'case "$*" in *api/token*) echo t;; *"token: t"*instance-action*) exit $LATER;; '
                "*) exit 3;; esac"),
        ("gcp", 'case "$*" in *instance/preempted*) [ $LATER = 0 ] && echo TRUE || echo FALSE;; '
                "*) exit 3;; esac"),
    ],
)  # fmt: skip
def test_the_watcher_tells_ray_when_the_cloud_gives_notice(
    cloud: str, curl: str, tmp_path: Path
) -> None:
    # No notice until the watcher has slept twice.
    stand_in(tmp_path, "sleep", f"echo >> {tmp_path / 'slept'}")
    later = f"[ $(cat {tmp_path / 'slept'} 2>/dev/null | wc -l) -lt 2 ] && LATER=22 || LATER=0\n"
    stand_in(tmp_path, "curl", later + curl)
    stand_in(tmp_path, "ray", f'echo "$RAY_ADDRESS $@" > {tmp_path / "told"}')
    subprocess.run(
        ["bash", CLUSTERS / "spot_watch.sh", cloud], env=with_stand_ins(tmp_path), check=True,
        timeout=60,
    )  # fmt: skip
    assert len((tmp_path / "slept").read_text().splitlines()) == 2
    told = (tmp_path / "told").read_text()
    assert told.startswith("auto drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    left_s = int(told.split()[-1])
    assert 0 < left_s < {"aws": 120, "gcp": 30}[cloud]


# In a process of its own: Ray's command line loads all of Ray.
KNOWN = """
import json
from ray.scripts.scripts import cli
reason = next(p for p in cli.commands["drain-node"].params if "--reason" in p.opts)
options = {name: [o for p in c.params for o in p.opts] for name, c in cli.commands.items()}
print(json.dumps([options, list(reason.type.choices)]))
"""


@pytest.mark.slow
def test_ray_knows_every_option_that_it_is_called_with() -> None:
    texts = [path.read_text().replace("\\\n", " ") for path in CALLING if path.suffix != ".yaml"]
    for name in ("aws.yaml", "gcp.yaml"):
        config = yaml.safe_load((CLUSTERS / name).read_text())
        texts += [c for key, value in config.items() if key.endswith("commands") for c in value]
    code = "\n".join(line.split("# ")[0] for text in texts for line in text.splitlines())
    calls = re.findall(r"\bray (start|stop|drain-node|health-check)\b([^\n;&|]*)", code)
    assert {name for name, _ in calls} == {"start", "stop", "drain-node", "health-check"}
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KNOWN], capture_output=True, text=True, check=True
    )
    options, reasons = json.loads(said.stdout)
    used = {(name, option) for name, rest in calls for option in re.findall(r"--[a-z-]+", rest)}
    assert ("drain-node", "--deadline-remaining-seconds") in used and len(used) >= 15
    assert {(name, option) for name, option in used if option not in options[name]} == set()
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons


def slurm_job(folder: Path, *, sweep: str, nodes: int) -> "subprocess.Popen[str]":
    (folder / "configs").mkdir()
    (folder / "configs/clusters").symlink_to(CLUSTERS)
    log = folder / "calls"
    for name in ("ray", "srun"):
        stand_in(folder, name, f'echo "{name} ${{#RAY_AUTH_TOKEN}} $@" >> {log}')
    stand_in(
        folder, "python",
        f'case "$1" in -c) exec {sys.executable} "$@";; '
        f'-m) echo "sweep $@" >> {log}; {sweep};; '
        f'*) echo "wait ${{@:2}}" >> {log};; esac',
    )  # fmt: skip
    env = with_stand_ins(folder) | {
        "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "4", "SLURM_GPUS_ON_NODE": "8", "SLURMD_NODENAME": "node1",
        "NODE_DISK": str(folder / "disk"),
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", CLUSTERS / "slurm.sbatch", "spec.yaml", "/shared/store"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_the_slurm_job_starts_ray_on_all_nodes_runs_the_sweep_and_stops_ray(tmp_path: Path) -> None:
    job = slurm_job(tmp_path, sweep="exit 1", nodes=3)
    assert job.communicate(timeout=60)[0] == ""
    assert job.returncode == 1  # the sweep's own: some cells are not finished
    calls = (tmp_path / "calls").read_text().splitlines()
    (head,) = [line for line in calls if "start --head" in line]
    (others,) = [line for line in calls if line.startswith("srun")]
    assert "--nodes=2" in others and "--exclude=node1" in others and "start --block" in others
    for line in (head, others):  # the same token, handed on; 64 digits
        assert line.split()[1] == "64" and "--num-cpus 4 --num-gpus 8" in line
    assert "--dashboard-host 127.0.0.1" in head
    (waited,) = [line for line in calls if line.startswith("wait")]
    assert waited.split()[2] == "3"
    assert "sweep -m sweeps.cli run spec.yaml --address auto --store /shared/store" in calls
    assert calls[-1] == "ray 64 stop"


def test_the_slurm_job_on_one_node_hands_sigterm_to_the_sweep_and_waits_for_it(
    tmp_path: Path,
) -> None:
    ended = tmp_path / "ended"
    sweep = f"trap 'sleep 0.2; touch {ended}; exit 130' TERM; touch {tmp_path / 'runs'}; "
    job = slurm_job(tmp_path, sweep=sweep + "while :; do sleep 0.05; done", nodes=1)
    end = time.monotonic() + 60
    while not (tmp_path / "runs").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)  # for the job to set its trap
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=60)
    assert ended.exists() and job.returncode == 130
    calls = (tmp_path / "calls").read_text().splitlines()
    assert not [line for line in calls if line.startswith("srun")]
    assert calls[-1] == "ray 64 stop"


def test_slurm_nodes_are_whole_and_the_time_limit_is_told_beforehand() -> None:
    text = (CLUSTERS / "slurm.sbatch").read_text()
    options = dict(
        [*part.split("=", 1), ""][:2] for part in re.findall(r"^#SBATCH --(\S+)", text, flags=re.M)
    )
    assert {"exclusive", "requeue"} <= set(options)
    assert options["ntasks-per-node"] == "1" and options["open-mode"] == "append"
    assert re.fullmatch(r"B:TERM@\d+", options["signal"])


@pytest.mark.parametrize("arguments", [[], ["start", "0"], ["start", "two"], ["restart"]])
def test_local_tells_how_it_is_used(arguments: list[str]) -> None:
    said = subprocess.run(
        ["bash", CLUSTERS / "local.sh", *arguments], capture_output=True, text=True
    )
    assert said.returncode == 2 and said.stderr == "usage: local.sh start [NODES] | stop\n"
