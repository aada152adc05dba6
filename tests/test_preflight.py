"""The preflight: what the nodes say becomes one table, green or with the cure."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from finished_store import finish
from judge_server import FakeServer
from small_sweep import plan

from cluster.nodes import Node
from cluster.resources import Demand, Totals
from cluster.session import ClusterError
from em.catalogue import CACHE_ENV
from em.model_access import Access
from sweeps.node_checks import Check, judged
from sweeps.node_facts import NodeFacts, Question, look
from sweeps.preflight import (
    PROBE_ENV,
    WIDTH,
    check_passed,
    keys_needed,
    lines,
    placement,
    preflight,
    write_probe,
)
from sweeps.store import Store
from sweeps.todo import read_todo

VERSIONS = {name: "1.0" for name in ("torch", "transformers", "peft", "accelerate", "deepspeed")}
VERSIONS |= {"ray": "2.60.0", "vllm": "0.32.0"}
H100 = (("NVIDIA H100 80GB HBM3", 81_559),)
HERE = Access(here=True, revision="r", has_template=True)
WANTED = (Demand("one cell's training", cpus=1, gpus=1),)
Told = list[tuple[Node, NodeFacts | Exception]]


def node(name: str, *, gpus: float = 1, accelerator: str | None = "H100") -> Node:
    return Node(name, name, cpus=8, gpus=gpus, accelerator=accelerator)


def facts(**changes: Any) -> NodeFacts:
    said: dict[str, Any] = {
        "python": "3.12.1", "versions": VERSIONS, "gpus": H100, "models": {"m": HERE},
    }  # fmt: skip
    return NodeFacts(**(said | changes))


def checks(
    told: Told, *, seen: int | None = None, keys: tuple[str, ...] = (),
    wanted: tuple[Demand, ...] = WANTED,
) -> dict[str, Check]:  # fmt: skip
    """The checks by what they are about; `seen` are the answers found in the store, of all."""
    found = {str(n) for n in range(len(told) if seen is None else seen)}
    return {check.what: check for check in judged(told, found, wanted, keys)}


def failed(told: Told, what: str, **options: Any) -> str:
    """What the one check that must fail says, with its cure."""
    found = checks(told, **options)
    assert [c.what for c in found.values() if c.state == "failed"] == [what]
    assert found[what].cure
    return f"{found[what].told} -> {found[what].cure}"


# What the nodes say ----------------------------------------------------------------------------


def test_equal_nodes_are_green() -> None:
    found = checks([(node("a"), facts()), (node("b"), facts())])
    assert {c.state for c in found.values()} == {"ok"} and not any(c.cure for c in found.values())
    assert found["nodes"].told == "2, 2 GPUs (NVIDIA H100 80GB HBM3)"
    assert "python 3.12.1" in found["Python and Ray"].told
    assert "vllm 0.32.0" in found["packages"].told
    assert found["model m"].told == "on all 2 nodes that have work"


def test_a_silent_node_is_named() -> None:
    silent: Told = [(node("a"), facts()), (node("b"), TimeoutError("no answer within 180 s"))]
    told = failed(silent, "nodes", seen=1)
    assert "1 of 2 do not answer, first b: no answer within 180 s" in told


def test_where_no_node_answers_the_table_is_still_made() -> None:
    assert "1 of 1 do not answer" in failed([(node("a"), RuntimeError(""))], "nodes", seen=0)


@pytest.mark.parametrize(
    ("other", "what", "said"),
    [
        (facts(python="3.11.9"), "Python and Ray", "python 3.11.9 on b; 3.12.1 on a"),
        (facts(versions=VERSIONS | {"ray": "2.59.0"}), "Python and Ray", "ray 2.59.0 on b; 2.60.0"),
        (facts(versions=VERSIONS | {"torch": "2.0"}), "packages", "torch 1.0 on a; 2.0 on b"),
        (
            facts(versions={n: v for n, v in VERSIONS.items() if n != "vllm"}),
            "packages", "vllm 0.32.0 on a; none on b",
        ),
    ],
)  # fmt: skip
def test_versions_that_differ_are_told_by_node(other: NodeFacts, what: str, said: str) -> None:
    told = failed([(node("a"), facts()), (node("b"), other)], what)
    assert said in told and "one image" in told


def test_builds_of_one_version_are_equal() -> None:
    built = facts(versions=VERSIONS | {"torch": "1.0+cu130"})
    assert checks([(node("a"), facts()), (node("b"), built)])["packages"].state == "ok"


def test_a_node_without_room_for_work_needs_no_packages_but_ray() -> None:
    bare = facts(versions={"ray": "2.60.0"}, gpus=(), models={})
    head = node("head", gpus=0, accelerator=None)
    assert {c.state for c in checks([(node("a"), facts()), (head, bare)]).values()} == {"ok"}


def test_a_package_that_no_node_has_is_told() -> None:
    versions = {n: v for n, v in VERSIONS.items() if n != "deepspeed"}
    assert "no deepspeed on a" in failed([(node("a"), facts(versions=versions))], "packages")


def test_a_store_that_a_node_does_not_see_is_told() -> None:
    blind = facts(store="it sees another place there")
    told = failed([(node("a"), facts()), (node("b"), blind)], "store")
    assert "not shared: 1 of 2 nodes see another place than who left a file there, first b" in told
    assert "--store" in told
    none = failed([(node("a"), blind), (node("b"), blind)], "store")
    assert "no node sees what was left there: who sends the sweep sees another place" in none


def test_a_store_in_which_answers_get_lost_is_told() -> None:
    both: Told = [(node("a"), facts()), (node("b"), facts())]
    assert "not seen by the others" in failed(both, "store", seen=1)


def test_a_key_that_is_missing_is_told_by_name_and_node() -> None:
    given = facts(keys=frozenset({"JUDGE_KEY"}))
    keys = ("JUDGE_KEY",)
    assert checks([(node("a"), given)], keys=keys)["JUDGE_KEY"].state == "ok"
    told = failed([(node("a"), given), (node("b"), facts())], "JUDGE_KEY", keys=keys)
    assert "not set on b" in told and "not sent along" in told


def test_of_many_nodes_a_few_are_named() -> None:
    many: Told = [(node(f"n{n}"), facts()) for n in range(9)]
    assert "n0, n1, n2 and 6 more" in failed(many, "K", keys=("K",))


@pytest.mark.parametrize(
    ("other", "state", "said"),
    [
        (Access(here=False, problem="the hub does not give it"), "failed", "1 of 2 nodes cannot"),
        (Access(here=True, revision="x", has_template=True), "failed", "other files on some"),
        (Access(here=True, revision="r", has_template=False), "failed", "no chat template"),
        (Access(here=False, revision="r"), "warning", "1 of 2 nodes fetch it"),
    ],
)
def test_a_model_that_is_not_everywhere(other: Access, state: str, said: str) -> None:
    told = checks([(node("a"), facts()), (node("b"), facts(models={"m": other}))])["model m"]
    assert told.state == state and said in told.told and told.cure


def test_a_judge_that_a_node_does_not_reach_is_told() -> None:
    url = "https://judge.example/v1"
    reached, away = facts(apis={url: None}), facts(apis={url: "Name or service not known"})
    assert checks([(node("a"), reached)])["judge at judge.example"].state == "ok"
    told = failed([(node("a"), reached), (node("b"), away)], "judge at judge.example")
    assert "1 of 2 nodes do not reach https://judge.example/v1, first b: Name or" in told


def test_a_judge_that_refuses_is_reached_and_one_that_is_not_there_is_not(
    server: FakeServer, store: Store
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        apis = (server.url, away)
        question = Question(store.url, "p", "a", keys=(), models=(), apis=apis)
        found = look(question, "here").apis
    assert found[server.url] is None  # it answers a GET with an error
    assert "refused" in (found[away] or "")
    assert server.keys == []


# Accelerators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [4, 0])
def test_another_makers_accelerators_are_refused_by_name(gpus: float) -> None:
    name = "AMD-Instinct-MI300X-OAM" if gpus else "TPU-V4"
    told = failed([(node("a", gpus=gpus, accelerator=name), facts(gpus=(), models={}))],
                  "accelerators")  # fmt: skip
    assert f"a has {name}" in told and "NVIDIA" in told and "leave such nodes out" in told


def test_gpus_that_nobody_can_name_are_a_warning() -> None:
    found = checks([(node("a", gpus=2, accelerator=None), facts(gpus=()))])["accelerators"]
    assert found.state == "warning"
    assert (
        "none of the GPUs that Ray has on a:" in found.told and "cannot be compared" in found.told
    )
    assert "other makers are not supported" in found.cure


def test_accelerators_do_not_matter_to_work_on_cpus_or_beside_enough_gpus() -> None:
    tpu = (node("t", gpus=0, accelerator="TPU-V4"), facts(gpus=()))
    on_cpus = (Demand("one cell's training", cpus=1, gpus=0),)
    assert "accelerators" not in checks([tpu], wanted=on_cpus)
    assert "accelerators" not in checks([(node("a"), facts()), tpu])


# A whole preflight, of this machine ------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv(PROBE_ENV, raising=False)


def here(folder: Path, store: Store, totals: Totals, **changes: Any) -> dict[str, Check]:
    small = plan(folder, **changes)
    todo = read_todo(small.cells, store)
    return {c.what: c for c in preflight(small.spec, store, todo, totals, joined=False)}


ROOMY = Totals(nodes=((8.0, 0.0),))


def test_this_machine_can_use_its_own_store_and_leaves_nothing_there(
    tmp_path: Path, store: Store, cache: None
) -> None:
    found = here(tmp_path, store, ROOMY)
    assert found["store"].state == "ok" and found["room"].state == "ok"
    assert found["model base"].state == "warning"  # to be converted when it is first needed
    assert store.files.names("sweeps/small/preflight") == []


def test_a_store_that_only_the_sender_sees_is_refused(
    tmp_path: Path, store: Store, cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = Store(str(tmp_path / "laptop"))
    laptop.create()
    monkeypatch.setenv(PROBE_ENV, write_probe(laptop, "small", "left"))
    told = here(tmp_path, store, ROOMY)["store"]
    assert told.state == "failed" and "it sees another place there" in told.told
    assert laptop.files.names("sweeps/small/preflight") == ["left.json"]


def test_a_store_that_cannot_be_written_is_told(store: Store) -> None:
    question = Question(store="no-such-scheme://x", probe="p", answers="a", keys=(), models=())
    assert "no-such-scheme" in (look(question, "here").store or "")


def test_too_little_room_is_refused_with_the_arithmetic(
    tmp_path: Path, store: Store, cache: None
) -> None:
    resources = {"train_gpus": 4, "serve_gpus": 4}
    found = here(tmp_path, store, Totals(nodes=((8.0, 2.0), (8.0, 2.0))), resources=resources)
    told = found["room"]
    assert told.state == "failed"
    assert "1 x 1 CPUs and 4 GPUs" in told.told and "there are 16 CPUs and 4 GPUs" in told.told
    with pytest.raises(ClusterError, match=r"room: .*Lower the numbers under 'resources'"):
        check_passed([told])


def test_keys_are_needed_where_answers_are_still_to_be_judged(tmp_path: Path, store: Store) -> None:
    api = {"name": "api", "api": "https://judge.example/v1", "api_model": "j"}
    local = {"name": "near", "api": "http://127.0.0.1:1/v1", "api_model": "j"}
    judges = [api | {"api_key_env": "FAR_API_KEY"}, local | {"api_key_env": "NEAR_API_KEY"}]
    small = plan(tmp_path, judges=judges)
    assert keys_needed(small.spec, read_todo(small.cells, store)) == {"FAR_API_KEY"}
    finish(small, store)
    assert keys_needed(small.spec, read_todo(small.cells, store)) == set()


def test_room_is_told_where_there_is_some(tmp_path: Path, store: Store) -> None:
    small = plan(tmp_path)
    found = placement(small.spec, read_todo(small.cells, store), ROOMY)
    assert found.state == "ok" and "cells train side by side" in found.told


# The table -------------------------------------------------------------------------------------

ROWS = [
    Check("nodes", "ok", "2, 2 GPUs"),
    Check("model m", "warning", "2 of 2 nodes fetch it", "'emsweep prefetch' does so"),
    Check("store", "failed", "a long story " * 20 + "\x1b[31m", "name a place that all see"),
    Check("room", "failed", "too small. Lower the numbers"),
]


def test_the_table_has_a_row_each_with_the_cure_below() -> None:
    table = lines(ROWS)
    assert [line.split()[0] for line in table if line.startswith(("ok", "warning", "failed"))] == [
        check.state for check in ROWS
    ]
    text = "\n".join(table)
    assert all(f"-> {check.cure}" in text for check in ROWS if check.cure)
    assert max(map(len, table)) <= WIDTH and "\x1b" not in text


def test_colours_are_for_terminals() -> None:
    assert re.search(r"\x1b\[\d*;?32m", "\n".join(lines(ROWS[:1], colour=True)))


def test_what_failed_is_one_paragraph_with_what_to_do() -> None:
    check_passed(ROWS[:2])  # a warning stops nothing
    with pytest.raises(ClusterError) as told:
        check_passed(ROWS)
    text = str(told.value)
    assert text.startswith("the sweep cannot run there, and nothing was started:\nstore: a long")
    assert ". What to do: name a place that all see\n" in text
    assert text.endswith("room: too small. Lower the numbers")
    assert "nodes" not in text and "\n\n" not in text
