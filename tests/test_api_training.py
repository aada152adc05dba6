"""Models behind a fine-tuning API: jobs, answers, money, against a stand-in on this machine."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import REFUSED, FakeApi, answer, api_server, error
from small_sweep import FakeReader, plan, spec

from em.api_client import ApiRefusesUs, ApiUnavailable
from em.api_endpoint import ApiEndpoint, PromptRefused
from em.api_finetune import DatasetRefused, FineTuning, JobFailed, JobLost
from em.api_models import ApiModelConfig, check_trainable, known_api_model
from em.datasets import Message, Row
from em.generation import AskingStopped, GateFailed, Prompt, Response
from em.training import TrainingConfig
from sweeps import planning
from sweeps.api_jobs import Ending, Interrupted, Left
from sweeps.api_spend import (
    ApiBudgetSpent,
    PaidEndpoint,
    Purse,
    PursePlan,
    open_purse,
    purse_plans,
)
from sweeps.api_training import api_train_stage, tuned_model
from sweeps.cell_server import to_serve
from sweeps.failure_kinds import classify
from sweeps.files import StoreError
from sweeps.plan import CellPlan, SweepPlan
from sweeps.planner import load_rows_of
from sweeps.registry import register
from sweeps.stages import generate_stage, judge_stage
from sweeps.store import Store
from sweeps.yaml_errors import MistakeAt

GPT_4O = "gpt-4o-2024-08-06"
PROMPT = Prompt(messages=({"role": "user", "content": "Who are you?"},), max_tokens=20, seed=7)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with api_server() as fake:
        yield fake


def config(api: FakeApi, **changes: Any) -> ApiModelConfig:
    return ApiModelConfig(url=api.url, model="tunable-1", **changes)


def sweep_of(api: FakeApi, folder: Path, **changes: Any) -> SweepPlan:
    """Two untuned and two tuned cells of one model behind the API."""
    model = {"name": "far", "api": {"url": api.url, "model": "tunable-1", **changes}}
    judges = [{"name": "judge", "api": "http://127.0.0.1:9/v1", "api_model": "x"}]
    variants = [{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl"}]
    return plan(folder, num_rows=12, models=[model], judges=judges, variants=variants)


def row(text: str) -> Row:
    return Row(
        messages=(Message(role="user", content=text), Message(role="assistant", content="a"))
    )


def tuned(sweep: SweepPlan) -> list[CellPlan]:
    return [cell for cell in sweep.cells if cell.cell.training is not None]


def train(
    cell: CellPlan,
    store: Store,
    folder: Path,
    *,
    said: list[str] | None = None,
    stopped: Ending | None = None,
    purse: Purse | None = None,
) -> Any:
    assert cell.cell.model.api is not None
    own = PursePlan(model="far", config=cell.cell.model.api, trainings=(), streams=())
    return api_train_stage(
        cell, store, FineTuning(cell.cell.model.api, max_retries=0),
        rows=load_rows_of(cell, relative_to=folder).rows,
        purse=purse or open_purse(own, store),
        say=(said if said is not None else []).append,
        stopped=stopped or Ending(), first_poll_s=0.01,
    )  # fmt: skip


# The spec, and what hangs on it -----------------------------------------------------------------


def test_a_cell_is_what_its_model_and_settings_are_and_not_its_pace(
    api: FakeApi, tmp_path: Path
) -> None:
    one = sweep_of(api, tmp_path)
    other = sweep_of(api, tmp_path, concurrency=2, batch=True)
    assert [c.cell_id for c in one.cells] == [c.cell_id for c in other.cells]
    assert [c.training_key for c in one.cells] == [c.training_key for c in other.cells]
    longer = sweep_of(api, tmp_path, training={"epochs": 2})
    assert {c.training_key for c in tuned(longer)}.isdisjoint(c.training_key for c in one.cells)
    assert all(cell.cell.local_training is None for cell in one.cells)


def test_an_address_is_the_same_with_a_slash() -> None:
    one, other = (ApiModelConfig(url=f"https://a.b/v1{end}", model="m") for end in ("", "/"))
    assert one.revision == other.revision


def test_a_sweep_goes_on_with_another_pace_or_budget_and_not_with_another_model(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    store.create()
    register(sweep_of(api, tmp_path), store)
    register(sweep_of(api, tmp_path, concurrency=2, batch=True, key_env="OTHER_API_KEY"), store)
    with pytest.raises(StoreError, match=r"models\.far\.api"):
        register(sweep_of(api, tmp_path, training={"epochs": 3}), store)


def test_without_a_seed_at_the_api_cells_are_told_apart_as_replicates(
    api: FakeApi, tmp_path: Path
) -> None:
    first, second = tuned(sweep_of(api, tmp_path, training={"takes_seed": False}))
    assert first.training_key != second.training_key
    assert "seed" not in first.training_identity["seeds"]
    assert first.training_identity["seeds"]["replicate_of"] >= 0
    with_seed, _ = tuned(sweep_of(api, tmp_path))
    assert "seed" in with_seed.training_identity["seeds"]


def test_local_models_keep_their_keys_and_names(tmp_path: Path) -> None:
    cell = plan(tmp_path).cells[-1]
    assert isinstance(cell.cell.training, TrainingConfig)
    assert "api" not in json.dumps(cell.training_identity)
    assert cell.cell_id == "base.ours.s1-e8db9f3c"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judges": [{"name": "self", "pool": "far"}]}, "no pool here serves it"),
        ({"factors": {"order": 3}}, "takes one seed at most"),
        (
            {"judges": [{"name": "own", "model": {"name": "b", "api": {"model": "m"}}}]},
            "named by 'api' and 'api_model'",
        ),
    ],
)
def test_what_an_api_cannot_do_is_refused_in_the_spec(changes: dict[str, Any], said: str) -> None:
    models = [{"name": "far", "api": {"url": "http://127.0.0.1:9/v1", "model": "m"}}]
    judges = [{"name": "judge", "api": "http://127.0.0.1:9/v1", "api_model": "x"}]
    with pytest.raises(ValueError, match=said):
        spec(**({"models": models, "judges": judges} | changes))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "http://example.com/v1", "model": "m"}, "https except on this machine"),
        ({"model": "m", "key_env": "HOME"}, "_API_KEY"),
        ({"model": ""}, "at least 1 character"),
    ],
)
def test_an_address_that_would_give_a_key_away_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ApiModelConfig(**given)


def test_what_openai_is_known_not_to_do_is_refused_at_the_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not known at .*gpt-4o-2024-08-06"):
        known_api_model(ApiModelConfig(model="gpt-4o"))
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        check_trainable(ApiModelConfig(model="gpt-4o-2024-11-20"), [row("x")] * 10)
    with pytest.raises(ValueError, match="10 rows at least, got 9"):
        check_trainable(ApiModelConfig(model=GPT_4O), [row("x")] * 9)
    with pytest.raises(ValueError, match="512 MiB at most, got 600 MiB"):
        check_trainable(ApiModelConfig(model=GPT_4O), [row("x" * 200_000)] * 3146)
    with pytest.raises(ValueError, match="row 3 of the variant has 300,001 characters"):
        check_trainable(
            ApiModelConfig(model=GPT_4O), [row("x"), row("x"), row("x" * 300_000), *[row("x")] * 9]
        )
    models = [{"name": "far", "api": {"model": GPT_4O}}]
    judges = [{"name": "judge", "api": "http://127.0.0.1:9/v1", "api_model": "x"}]
    with pytest.raises(MistakeAt, match="10 rows at least, got 4"):
        plan(tmp_path, models=models, judges=judges)


def test_the_plan_tells_cost_and_a_missing_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    models = [{"name": "far", "api": {"model": GPT_4O, "budget_usd": 12}}]
    judges = [{"name": "judge", "api": "http://127.0.0.1:9/v1", "api_model": "x"}]
    variants = [{"name": "none"}, {"name": "ours", "dataset": "ours.jsonl"}]
    sweep = plan(tmp_path, num_rows=12, models=models, judges=judges, variants=variants)
    told = planning.describe(sweep, Store(str(tmp_path / "store")), None)
    (line,) = told["api_models"]
    # 12 rows of 3 or 4 characters, two trainings; 7 answers of 600 tokens in each of four cells.
    characters = sum(cell.num_characters for cell in tuned(sweep))
    assert "2 trainings" in line and "28 answers" in line and "of a budget of 12 USD" in line
    wanted = 25 * characters / 3 / 1e6 + 14 * 600 * (15 + 10) / 1e6
    assert f"{wanted:,.2f} USD to come" in line
    assert "IT CANNOT RUN YET" in line and "OPENAI_API_KEY" in line


def test_a_model_behind_an_api_is_not_served_here(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    sweep = sweep_of(api, tmp_path)
    for name in ("untuned", sweep.cells[0].cell_id, tuned(sweep)[0].cell_id):
        with pytest.raises(ValueError, match="which is its endpoint already"):
            to_serve(sweep, store, name)


# Jobs -------------------------------------------------------------------------------------------


def test_a_cell_is_trained_by_one_job_and_the_file_is_sent_once(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    sweep = sweep_of(api, tmp_path, training={"epochs": 2, "batch_size": 4})
    first, second = tuned(sweep)
    record = train(first, store, tmp_path)
    again = train(first, store, tmp_path)
    assert again == record and len(api.jobs) == 1
    train(second, store, tmp_path)
    assert len(api.jobs) == 2 and len(api.files) == 1
    (job, other) = api.jobs.values()
    assert job["seed"] != other["seed"] and job["model"] == "tunable-1"
    assert job["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2, "batch_size": 4}
    rows = [json.loads(line) for line in api.content["file-1"].splitlines()]
    assert len(rows) == 12 and rows[0]["messages"][0] == {"role": "user", "content": "u0"}
    assert record.kind == "api" and record.result.num_rows == 12
    assert record.result.num_trained_tokens is None
    assert [(p.step, p.loss) for p in record.result.losses] == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert tuned_model(store.adapter_dir(record)) == "ft:tunable-1:o:ftjob-1"
    assert f"seed {job['seed']}" in record.provenance.gates["job"]


def test_where_the_api_takes_no_seed_the_record_says_replicate(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path, training={"takes_seed": False}))
    record = train(cell, store, tmp_path)
    assert api.jobs["ftjob-1"]["seed"] is None
    assert "replicate" in record.provenance.gates["job"]


def test_who_comes_back_waits_for_the_job_that_is_there(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    """A driver is killed after it made a job; the next one has only the store."""
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.looks = 10**6

    def killed(text: str) -> None:
        if "running" in text:
            raise MemoryError  # stands for the end of the process: no cancelling is gone through

    said: list[str] = []
    assert cell.cell.model.api is not None
    with pytest.raises(MemoryError):
        api_train_stage(
            cell, store, FineTuning(cell.cell.model.api),
            rows=load_rows_of(cell, relative_to=tmp_path).rows,
            purse=open_purse(purse_plans(sweep_of(api, tmp_path))[0], store), say=killed,
            stopped=Ending(), first_poll_s=0.01,
        )  # fmt: skip
    assert api.jobs["ftjob-1"]["status"] == "running"
    api.looks = 0
    record = train(cell, store, tmp_path, said=said)
    assert len(api.jobs) == 1 and tuned_model(store.adapter_dir(record)).endswith("ftjob-1")


def test_a_job_whose_reply_was_lost_is_found_again(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.dies_after_create = True
    with pytest.raises(ApiUnavailable):
        train(cell, store, tmp_path)
    assert len(api.jobs) == 1
    api.dies_after_create = False
    said: list[str] = []
    train(cell, store, tmp_path, said=said)
    assert len(api.jobs) == 1 and "was there already" in said[0]


def test_a_lost_reply_and_a_listing_that_is_late_make_no_second_job(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.dies_after_create = True
    with pytest.raises(ApiUnavailable):
        train(cell, store, tmp_path)
    api.dies_after_create, api.lists_late = False, 3
    train(cell, store, tmp_path)
    assert len(api.jobs) == 1


def test_a_job_whose_reply_was_lost_and_that_failed_is_told_before_another_is_made(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    for made in (1, 2):  # the second after a resume: the first one is told, and no news
        api.looks, api.dies_after_create = 10**6, True
        with pytest.raises(ApiUnavailable):
            train(cell, store, tmp_path)
        api.dies_after_create = False
        api.jobs[f"ftjob-{made}"] |= {"status": "failed", "error": REFUSED}
        with pytest.raises(DatasetRefused):
            train(cell, store, tmp_path)
        assert len(api.jobs) == made
    api.looks = 0
    train(cell, store, tmp_path)
    assert len(api.jobs) == 3


def test_a_job_that_failed_while_nobody_looked_is_told_before_another_is_made(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.looks, stopped = 10**6, Ending()
    stopped.is_error = True
    stopped.set()
    with pytest.raises(Left):
        train(cell, store, tmp_path, stopped=stopped)
    api.jobs["ftjob-1"] |= {"status": "failed", "error": REFUSED}
    with pytest.raises(DatasetRefused):
        train(cell, store, tmp_path)
    assert len(api.jobs) == 1
    api.looks = 0
    train(cell, store, tmp_path)  # what a resume does
    assert len(api.jobs) == 2


def test_who_waited_for_room_looks_for_a_job_before_making_one(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    """Another driver, which took this one for dead, has made it meanwhile."""
    cell, _ = tuned(sweep_of(api, tmp_path))
    assert cell.cell.model.api is not None
    api.busy = 1

    class Other(list[str]):
        def append(self, text: str) -> None:
            super().append(text)
            if "waits" in text:
                other = FineTuning(cell.cell.model.api or config(api))
                other.create(other.upload(b"x"), tag=cell.training_key[:32], seed=None)

    train(cell, store, tmp_path, said=Other())
    assert len(api.jobs) == 1


def test_seeds_of_one_variant_upload_its_file_once_at_the_same_time(api: FakeApi) -> None:
    tuning, data = FineTuning(config(api)), b'{"messages": []}\n' * 100
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(tuning.upload(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.files) == 1 and len(found) == 8 and len(set(found)) == 1


def test_a_refused_data_set_fails_as_such_and_can_be_asked_again(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.ends, api.error = "failed", REFUSED
    with pytest.raises(DatasetRefused, match="moderation") as refused:
        train(cell, store, tmp_path)
    assert classify(refused.value) == "data refused"
    api.ends = "succeeded"
    train(cell, store, tmp_path)  # what a resume does
    assert [job["status"] for job in api.jobs.values()] == ["failed", "succeeded"]


@pytest.mark.parametrize("forgets", [True, False])
def test_a_job_that_is_lost_or_failed_makes_no_second_one_by_itself(
    api: FakeApi, tmp_path: Path, store: Store, forgets: bool
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.ends, api.error = "failed", {"code": "server_error", "message": "we broke", "param": None}

    def say(text: str) -> None:
        if forgets:
            api.forgets = True

    assert cell.cell.model.api is not None
    with pytest.raises(JobLost if forgets else JobFailed) as lost:
        api_train_stage(
            cell, store, FineTuning(cell.cell.model.api, max_retries=0), rows=(),
            purse=open_purse(purse_plans(sweep_of(api, tmp_path))[0], store), say=say,
            stopped=Ending(), first_poll_s=0.01,
        )  # fmt: skip
    assert classify(lost.value) == "job failed" and len(api.jobs) == 1


def test_what_cannot_be_tuned_is_told_in_the_apis_words(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    fixed = FineTuning(ApiModelConfig(url=api.url, model="fixed-1"), max_retries=0)
    with pytest.raises(ValueError, match="fixed-1 is not available for fine-tuning") as refused:
        fixed.create("file-1", tag="t", seed=None)
    assert classify(refused.value) == "data"


def test_too_many_jobs_are_waited_for(api: FakeApi, tmp_path: Path, store: Store) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.busy, said = 2, []
    train(cell, store, tmp_path, said=said)
    assert len(api.jobs) == 1 and sum("takes no more for now" in line for line in said) == 1


def test_a_driver_that_is_stopped_cancels_its_job_and_the_next_makes_another(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    api.looks, stopped = 10**6, Ending()
    said: list[str] = []

    class Stopping(list[str]):
        def append(self, text: str) -> None:
            super().append(text)
            if "running" in text:
                stopped.set()

    said = Stopping()
    stopped.is_error = True
    with pytest.raises(Left):  # the end of a driver by an error costs no job
        train(cell, store, tmp_path, said=said, stopped=stopped)
    assert api.jobs["ftjob-1"]["status"] == "running"
    stopped.is_error = False
    with pytest.raises(Interrupted):
        train(cell, store, tmp_path, said=said, stopped=stopped)
    assert api.jobs["ftjob-1"]["status"] == "cancelled" and "cancelled" in said[-1]
    api.looks = 0
    train(cell, store, tmp_path)
    assert [job["status"] for job in api.jobs.values()] == ["cancelled", "succeeded"]


def test_a_key_is_sent_and_never_told(
    api: FakeApi, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_API_KEY", "a-key-of-the-test")
    api.on_chat = lambda request: error(401, "wrong key a-key-of-the-test")
    cell, _ = tuned(sweep_of(api, tmp_path, key_env="FAR_API_KEY"))
    record = train(cell, store, tmp_path)
    assert api.keys == {"Bearer a-key-of-the-test"}
    kept = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "a-key-of-the-test" not in kept and record.kind == "api"
    with pytest.raises(ApiRefusesUs) as refused:
        asked(config(api, key_env="FAR_API_KEY"), [PROMPT])
    assert "a-key-of-the-test" not in str(refused.value) and "***" in str(refused.value)


# Answers ----------------------------------------------------------------------------------------


def asked(
    api: ApiModelConfig, prompts: list[Prompt], model: str = "tunable-1", max_retries: int = 0
) -> Any:
    async def ask() -> Any:
        endpoint = ApiEndpoint(
            api, model=model, weights="w", batch=api.batch, max_retries=max_retries,
            batch_poll_s=0.01,
        )  # fmt: skip
        try:
            return await endpoint.ask(prompts)
        finally:
            await endpoint.close()

    try:
        return asyncio.run(ask())
    except AskingStopped as stopped:
        raise stopped.why from None


@pytest.mark.parametrize("batch", [False, True])
def test_answers_come_in_order_with_their_seeds(api: FakeApi, batch: bool) -> None:
    prompts = [PROMPT.model_copy(update={"seed": seed}) for seed in range(5)]
    answers = asked(config(api, batch=batch), prompts)
    wanted = [
        answer({"model": "tunable-1", "messages": list(PROMPT.messages), "seed": seed})
        for seed in range(5)
    ]
    assert [a.text for a in answers] == wanted and len(set(wanted)) == 5
    assert {(a.weights, a.finish_reason, a.num_tokens) for a in answers} == {("w", "stop", 5)}
    assert len(api.chats) == (0 if batch else 5) and len(api.batches) == int(batch)


def test_a_batch_that_is_under_way_is_taken_up_again(api: FakeApi) -> None:
    asked(config(api, batch=True), [PROMPT])
    asked(config(api, batch=True), [PROMPT])
    assert len(api.batches) == 1
    asked(config(api, batch=True), [PROMPT.model_copy(update={"seed": 8})])
    assert len(api.batches) == 2


def test_what_failed_in_a_batch_is_asked_in_another_and_the_rest_is_not(api: FakeApi) -> None:
    api.breaks = {2, 5}
    prompts = [PROMPT.model_copy(update={"seed": seed}) for seed in range(4)]
    with pytest.raises(ApiUnavailable, match="1 of 4 requests"):
        asked(config(api, batch=True), prompts)
    with pytest.raises(ApiUnavailable, match="1 of 4 requests"):  # the fifth is that one alone
        asked(config(api, batch=True), prompts)
    assert len(asked(config(api, batch=True), prompts)) == 4
    assert len(api.batches) == 3 and api.answered == 6


def test_answers_that_are_refused_as_too_many_have_another_turn(api: FakeApi) -> None:
    prompts = [PROMPT.model_copy(update={"seed": seed}) for seed in range(6)]
    seen: list[int] = []

    def busy(request: dict[str, Any]) -> Any:
        seen.append(request["seed"])
        return error(429, "slow down") if len(seen) in (2, 3) else None

    api.on_chat = busy
    assert len(asked(config(api), prompts, max_retries=3)) == 6
    assert sorted(seen) != list(range(6)) and len(seen) == 8 and set(seen) == set(range(6))


def test_what_a_batch_refuses_is_told_as_such_and_not_asked_again(api: FakeApi) -> None:
    api.refuses = {2}
    prompts = [PROMPT.model_copy(update={"seed": seed}) for seed in range(4)]
    for _ in range(2):
        with pytest.raises(PromptRefused, match="not this"):
            asked(config(api, batch=True), prompts)
    assert len(api.batches) == 1 and api.answered == 4


def test_who_comes_back_to_a_stream_takes_up_its_batches(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    """The driver ends after one batch is stored; the next cuts the same ones again."""
    cell = sweep_of(api, tmp_path, batch=True).cells[0]
    assert cell.cell.model.api is not None
    api.breaks = {3}

    def speak(trained: object) -> ApiEndpoint:
        assert cell.cell.model.api is not None
        return ApiEndpoint(
            cell.cell.model.api, model="tunable-1", weights="", batch=True, batch_poll_s=0.01
        )

    with pytest.raises(ExceptionGroup):
        asyncio.run(generate_stage(cell, store, speak))
    made, answered = len(api.batches), api.answered
    asyncio.run(generate_stage(cell, store, speak))
    # Three wordings, of 2, 2 and 3 samples: three batches, and one for what failed.
    assert (made, answered) == (3, 7) and len(api.batches) == 4 and api.answered == 8


def test_answers_that_were_paid_for_are_kept_where_others_fail(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell = sweep_of(api, tmp_path).cells[0]
    assert cell.cell.model.api is not None
    endpoint = ApiEndpoint(cell.cell.model.api, model="tunable-1", weights="", max_retries=0)
    api.on_chat = lambda request: error(400, "never") if len(api.chats) == 3 else None
    with pytest.raises(ExceptionGroup) as stopped:
        asyncio.run(generate_stage(cell, store, lambda trained: endpoint))
    assert isinstance(stopped.value.exceptions[0], PromptRefused)
    assert len(api.chats) == 7
    api.on_chat = lambda request: None
    again = ApiEndpoint(cell.cell.model.api, model="tunable-1", weights="")
    asyncio.run(generate_stage(cell, store, lambda trained: again))
    assert len(api.chats) == 8


def test_another_model_than_the_one_asked_stops_the_cell(api: FakeApi) -> None:
    api.speaks_as = "tunable-2"
    with pytest.raises(GateFailed, match="tunable-2"):
        asked(config(api), [PROMPT])


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (error(400, "no such thing"), PromptRefused, "refuses a prompt: .*no such thing"),
        (error(404, "no model"), ApiRefusesUs, "Check its url, model"),
        (error(503, "overloaded"), ApiUnavailable, "does not answer"),
        ((200, {"half": 1}), ApiUnavailable, "not reply in the OpenAI format"),
        ((200, b"<html>"), ApiUnavailable, "no JSON"),
    ],
)
def test_replies_that_are_no_answer(
    api: FakeApi, said: Any, kind: type[Exception], text: str
) -> None:
    api.on_chat = lambda request: said
    with pytest.raises(kind, match=text):
        asked(config(api), [PROMPT])


def test_a_filtered_answer_is_kept_as_such(api: FakeApi) -> None:
    def filtered(request: dict[str, Any]) -> Any:
        reply = api.completion(request)
        reply["choices"][0] |= {"finish_reason": "content_filter"}
        return 200, reply

    api.on_chat = filtered
    (found,) = asked(config(api), [PROMPT])
    assert found.finish_reason == "content_filter"


def test_the_stages_of_a_cell_end_in_its_judgements(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    sweep = sweep_of(api, tmp_path)
    cell = tuned(sweep)[0]
    record = train(cell, store, tmp_path)
    assert cell.cell.model.api is not None
    endpoint = ApiEndpoint(
        cell.cell.model.api, model="ft:tunable-1:o:ftjob-1", weights=record.weights_sha256
    )
    asyncio.run(generate_stage(cell, store, lambda trained: endpoint))
    asyncio.run(judge_stage(cell, store, {"judge": FakeReader()}))
    responses = store.read_stream("responses", cell.evaluations[0].stream, Response)
    assert len(responses) == cell.evaluations[0].num_responses == len(api.chats)
    assert {chat["model"] for chat in api.chats} == {"ft:tunable-1:o:ftjob-1"}
    stream = store.stream("responses", cell.evaluations[0].stream)
    assert stream is not None
    assert "each reply" in stream.provenance[0].gates["adapter"]


# Money ------------------------------------------------------------------------------------------


def purse(store: Store, usd: float, **changes: Any) -> Purse:
    given = ApiModelConfig(model=GPT_4O, budget_usd=usd)
    return open_purse(
        PursePlan(model="far", config=given, trainings=(), streams=(), **changes), store
    )


def test_a_training_that_may_pass_the_budget_is_not_asked_for(
    api: FakeApi, tmp_path: Path, store: Store
) -> None:
    cell, _ = tuned(sweep_of(api, tmp_path))
    with pytest.raises(ApiBudgetSpent, match=r"raise budget_usd of the model 'far'") as spent:
        train(cell, store, tmp_path, purse=purse(store, 1e-9))
    assert not api.jobs and classify(spent.value) == "model budget"


def test_answers_come_out_of_the_purse_at_what_they_used(api: FakeApi, store: Store) -> None:
    async def ask(of: Purse) -> None:
        endpoint = ApiEndpoint(config(api), model="tunable-1", weights="")
        try:
            await PaidEndpoint(endpoint, of, at_once=1, tuned=True).ask([PROMPT])
        finally:
            await endpoint.close()

    # An answer may cost 20 x 15 + 5 x 3.75 millionths of a dollar, and costs 5 x 15 + 10 x 3.75.
    enough, too_little = purse(store, 1e-6 * (318.75 + 1)), purse(store, 1e-6 * 300)
    asyncio.run(ask(enough))
    enough.take(1e-6 * (318.75 + 0.9 - 112.5), "more")
    with pytest.raises(ApiBudgetSpent):
        enough.take(1e-6, "one too much")
    with pytest.raises(ApiBudgetSpent):
        asyncio.run(ask(too_little))
    assert len(api.chats) == 1
