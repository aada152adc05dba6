"""How a cell's errors become attempts and failures; only a folder is needed."""

import json
import time

from em.generation import GateFailed
from em.judging import JudgeUnavailable
from sweeps.artefacts import Attempt, DriverBeat
from sweeps.attempts import CellLog, kind_of, live_drivers
from sweeps.failure_kinds import is_transient
from sweeps.failures import CellFailure, OnStage, attempt_cell, outcome_of, record_failure
from sweeps.store import Store


def attempts(store: Store) -> list[Attempt]:
    return store.attempts("s", "cell")


def failure(**changes: object) -> CellFailure:
    known = {"cell_id": "cell", "stage": "train", "error_class": "E", "message": "m"}
    return CellFailure.model_validate(known | {"kind": "unknown"} | changes)


class Work:
    """Raises the errors it is given, one a try; then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self, on_stage: OnStage) -> None:
        on_stage("generate")
        on_stage("judge")
        if self._errors:
            raise self._errors.pop(0)


def carry_out(store: Store, work: Work, tries: int = 3) -> CellFailure | None:
    return attempt_cell(store, "s", "cell", "driver", work, first_stage="generate", tries=tries)


def test_work_that_succeeds_is_one_finished_attempt(store: Store) -> None:
    assert carry_out(store, Work()) is None
    assert [(a.attempt, a.stage, a.state) for a in attempts(store)] == [(1, "judge", "finished")]


def test_a_transient_error_is_tried_again_as_an_attempt_of_its_own(store: Store) -> None:
    assert carry_out(store, Work(JudgeUnavailable("away"))) is None
    assert [(a.state, a.error_class) for a in attempts(store)] == [
        ("failed", "JudgeUnavailable"),
        ("finished", None),
    ]


def test_a_transient_error_is_tried_a_bounded_number_of_times(store: Store) -> None:
    errors = [ConnectionError(str(n)) for n in range(5)]
    failed = carry_out(store, Work(*errors), tries=2)
    assert failed is not None
    assert (failed.stage, failed.message, failed.transient) == ("judge", "1", True)
    assert len(attempts(store)) == 2


def test_an_attempt_keeps_the_kind_of_its_failure(store: Store) -> None:
    failed = carry_out(store, Work(GateFailed("judge gate: wrong"), GateFailed("never reached")))
    assert failed is not None
    (attempt,) = attempts(store)
    assert attempt.kind == failed.kind == "gate"


def test_an_attempt_of_before_kinds_were_kept_has_one(store: Store) -> None:
    old = {"attempt": 1, "stage": "judge", "state": "failed", "updated": 1.0, "driver": "d",
           "error": "away", "error_class": "JudgeUnavailable"}  # fmt: skip
    store.files.write("sweeps/s/cells/cell/attempt-0001.json", json.dumps(old).encode())
    (attempt,) = attempts(store)
    assert attempt.kind is None
    assert kind_of(attempt) == "judge unavailable"


def test_another_error_is_not_tried_again(store: Store) -> None:
    failed = carry_out(store, Work(ValueError("a bad row"), ValueError("never reached")))
    assert failed is not None
    assert (failed.error_class, failed.transient) == ("ValueError", False)
    assert [a.error for a in attempts(store)] == ["a bad row"]


def test_the_error_inside_a_group_is_told(store: Store) -> None:
    failed = carry_out(store, Work(ExceptionGroup("parts", [ValueError("inner")])), tries=1)
    assert failed is not None
    assert failed.message == "inner"


def test_a_group_is_transient_only_if_all_of_it_is() -> None:
    assert is_transient(ExceptionGroup("x", [ConnectionError(), TimeoutError()]))
    assert not is_transient(ExceptionGroup("x", [ConnectionError(), ValueError()]))


def test_a_lost_process_is_a_failure() -> None:
    def lost() -> None:
        raise ConnectionError("the worker died")

    failed = outcome_of(lost, "cell", "generate")
    assert failed is not None
    assert (failed.cell_id, failed.stage, failed.transient) == ("cell", "generate", True)
    assert outcome_of(lambda: None, "cell", "generate") is None


def test_the_driver_ends_the_attempt_that_a_killed_process_left_running(store: Store) -> None:
    CellLog(store, "s", "cell", driver="driver", attempt=1).write("train", "running")
    record_failure(store, "s", "driver", failure())
    assert [(a.attempt, a.state, a.error) for a in attempts(store)] == [(1, "failed", "m")]


def test_a_failure_that_the_process_wrote_itself_is_kept(store: Store) -> None:
    CellLog(store, "s", "cell", driver="driver", attempt=1).failed(
        "train", "the cause", "E", "data"
    )
    record_failure(store, "s", "driver", failure(message="it ended"))
    assert [a.error for a in attempts(store)] == ["the cause"]


def test_a_killed_process_failed_in_the_stage_that_it_noted(store: Store) -> None:
    CellLog(store, "s", "cell", driver="driver", attempt=1).write("judge", "running")
    record_failure(store, "s", "driver", failure(message="the worker died", stage="generate"))
    assert [(a.stage, a.state) for a in attempts(store)] == [("judge", "failed")]


def test_a_failure_of_an_earlier_driver_is_not_taken_for_this_ones(store: Store) -> None:
    CellLog(store, "s", "cell", driver="earlier", attempt=1).failed("train", "then", "E", "data")
    record_failure(store, "s", "driver", failure(message="now"))
    assert [(a.attempt, a.error) for a in attempts(store)] == [(1, "then"), (2, "now")]


def test_a_driver_without_a_sign_of_life_is_gone(store: Store) -> None:
    long_ago = time.time() - 3600
    beat = DriverBeat(driver="d", host="elsewhere", pid=1, started=long_ago, updated=long_ago)
    store.write_record("sweeps/s/drivers/d.json", beat)
    assert live_drivers(store, "s") == []
    store.write_record("sweeps/s/drivers/d.json", beat.model_copy(update={"updated": time.time()}))
    assert [beat.driver for beat in live_drivers(store, "s")] == ["d"]
