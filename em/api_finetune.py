"""Fine-tuning through OpenAI's API, or one that speaks as it does: a file, a job, its end.

A file is uploaded once for what is in it, and a job is found again by the tag that it was given, so
that who comes back after a crash makes no second one. Knows nothing of cells or stores.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError

from em.api_client import (
    MAX_RETRIES,
    TIMEOUT_S,
    ApiRefusesUs,
    ApiUnavailable,
    check_key,
    key_for,
    refused_or_away,
    safe,
)
from em.api_models import ApiModelConfig
from em.chat_replies import Part
from em.datasets import Row
from em.told import first_mistake

TAG = "emsweep"  # the name of the tag in a job's metadata
SUFFIX_DIGITS = 12  # of it, in the tuned model's name, where the API keeps no metadata
MOST_PAGES = 200  # of a listing: who has more jobs has a listing that can be filtered
# Words of OpenAI's message where too much of a file is against its rules
# (https://community.openai.com/t/fine-tuning-gpt-3-5-on-hateful-content/699409).
REFUSED_WORDS = ("moderation", "usage policies", "safety", "policy violation")

Status = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
OVER: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
USELESS: tuple[Status, ...] = ("failed", "cancelled")


class DatasetRefused(ValueError):
    """The API will not train on these rows: its moderation says so."""


class JobFailed(RuntimeError):
    """The job ended without a model, and the same job would again for all that is known."""


class JobLost(JobFailed):
    """The API does not know the job any more that it was given."""


class JobError(Part):
    """Why a job failed, in the API's words."""

    code: str | None = None
    message: str | None = None


class JobState(Part):
    """A job as the API tells it. `fine_tuned_model` is the model's name once it has succeeded."""

    id: str = Field(min_length=1)
    status: Status
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    seed: int | None = None
    created_at: int = 0
    metadata: dict[str, str] | None = None
    user_provided_suffix: str | None = None
    error: JobError | None = None
    hyperparameters: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing will come of it any more than there is."""
        return self.status in OVER


class StepPoint(Part):
    """The loss that the API tells of one step."""

    step: int
    train_loss: float


def file_of(rows: Sequence[Row]) -> bytes:
    """Return the training file of chat rows: a line of JSON each, in their order."""
    return b"".join(row.line for row in rows)


class FineTuning:
    """The fine-tuning of one model at its API. May be used by several threads."""

    def __init__(
        self,
        config: ApiModelConfig,
        *,
        max_retries: int = MAX_RETRIES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Open no connection yet. Raises ValueError where a key is needed and there is none."""
        check_key(config.url, config.key_env, who="model", setting="key_env")
        try:
            import openai
        except ImportError as error:
            raise ValueError(f"a model with 'api' needs the extra 'serve': {error}") from error
        self._config = config
        self._uploading, self._uploaded = threading.Lock(), dict[bytes, str]()
        self._client = openai.OpenAI(
            base_url=config.url,
            api_key=key_for(config.key_env),
            max_retries=max_retries,
            timeout=timeout_s,
        )

    def upload(self, data: bytes) -> str:
        """Return the id of the training file with these bytes, uploaded if it is not there."""
        with self._uploading:
            if data not in self._uploaded:
                self._uploaded[data] = self._upload(data)
            return self._uploaded[data]

    def _upload(self, data: bytes) -> str:
        name = f"{TAG}-{hashlib.sha256(data).hexdigest()[:32]}.jsonl"

        def there() -> Iterator[Any]:
            return iter(self._client.files.list(purpose="fine-tune"))

        for file in self._all(there):
            if file.filename == name and file.bytes == len(data) and file.status != "error":
                return str(file.id)
        found = self._asked(
            lambda: self._client.files.create(
                file=(name, data, "application/jsonl"), purpose="fine-tune"
            )
        )
        return str(found.id)

    def find(self, tag: str, *, told: Collection[str] | None = None) -> JobState | None:
        """Return the newest job with this tag of which a model came, or may still come.

        Where there is none and `told` is given: the newest that failed and is none of these.
        """

        def there() -> Iterator[Any]:
            return iter(self._client.fine_tuning.jobs.list(limit=100, metadata={TAG: tag}))

        jobs = [_state(job) for job in self._all(there) if _has_tag(job, tag)]
        mine = [job for job in jobs if job.status not in USELESS]
        if not mine and told is not None:
            mine = [job for job in jobs if job.status == "failed" and job.id not in told]
        return max(mine, key=lambda job: job.created_at, default=None)

    def create(self, file_id: str, *, tag: str, seed: int | None) -> JobState:
        """Have the model trained on a file; with `seed` where the API takes one."""
        training = self._config.training
        settings = {
            "n_epochs": training.epochs,
            "batch_size": training.batch_size,
            "learning_rate_multiplier": training.learning_rate_multiplier,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        extra = {"seed": seed} if seed is not None else {}
        # Not tried again by the client: where a call was carried out and its reply was lost, that
        # would make a second job. Who asks again looks first.
        once = self._client.with_options(max_retries=0)
        return _state(
            self._asked(
                lambda: once.fine_tuning.jobs.create(
                    model=self._config.model,
                    training_file=file_id,
                    method={"type": "supervised", "supervised": {"hyperparameters": given}},
                    suffix=f"em-{tag[:SUFFIX_DIGITS]}",
                    metadata={TAG: tag},
                    **extra,
                )
            )
        )

    def look(self, job_id: str) -> JobState:
        """Return how a job stands. Raises JobLost where the API does not know it."""
        import openai

        try:
            return _state(self._asked(lambda: self._client.fine_tuning.jobs.retrieve(job_id)))
        except ApiRefusesUs as error:
            if not isinstance(error.__cause__, openai.NotFoundError):
                raise
            raise JobLost(
                f"the API at {self._config.url} does not know the job {job_id} any more"
            ) from error

    def cancel(self, job_id: str) -> JobState:
        """End a job; what it has cost until now is spent."""
        return _state(self._asked(lambda: self._client.fine_tuning.jobs.cancel(job_id)))

    def losses(self, job_id: str) -> list[StepPoint]:
        """Return the losses that the API tells of a job, by step; none where it tells none."""

        def there() -> Iterator[Any]:
            return iter(self._client.fine_tuning.jobs.list_events(job_id, limit=100))

        found: dict[int, StepPoint] = {}
        for event in self._all(there):
            try:
                point = StepPoint.model_validate(getattr(event, "data", None) or {})
            except ValidationError:
                continue  # an event of another kind
            if point.train_loss >= 0:
                found[point.step] = point
        return [found[step] for step in sorted(found)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _all(self, there: Callable[[], Iterable[Any]]) -> list[Any]:
        def read() -> list[Any]:
            found = []
            for number, item in enumerate(there()):
                if number > MOST_PAGES * 100:
                    break
                found.append(item)
            return found

        return list(self._asked(read))

    def _asked(self, call: Callable[[], Any]) -> Any:
        """Make a call. Raises ApiRefusesUs, ApiUnavailable, DatasetRefused or ValueError.

        ApiBusy, an ApiUnavailable, where the account has as much under way as it may.
        """
        import openai

        where = f"the API of {self._config.model} at {self._config.url}"
        try:
            return call()
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            said = self._safe(error)
            if _tells_of_moderation(said):
                raise DatasetRefused(f"{where} will not train on this data set: {said}") from error
            raise ValueError(f"{where} does not take this: {said}") from error
        except openai.OpenAIError as error:
            raise refused_or_away(error, where, self._config.key_env) from error

    def _safe(self, error: Exception) -> str:
        return safe(error, self._config.key_env)


def model_of(job: JobState, url: str) -> str:
    """Return the model that a job came to. Raises DatasetRefused or JobFailed where it is none."""
    if job.status == "succeeded" and job.fine_tuned_model:
        return job.fine_tuned_model
    error = job.error or JobError()
    said = f"{error.code or 'no code'}: {error.message or 'no message'}"
    if _tells_of_moderation(said):
        raise DatasetRefused(f"{url} will not train on this data set (job {job.id}): {said}")
    raise JobFailed(f"the job {job.id} at {url} {job.status}: {said}")


def _tells_of_moderation(text: str) -> bool:
    return any(word in text.lower() for word in REFUSED_WORDS)


def _has_tag(job: Any, tag: str) -> bool:
    """Whether a job of a listing is ours; others may be of kinds that nothing here knows."""
    metadata = getattr(job, "metadata", None)
    if isinstance(metadata, dict) and TAG in metadata:
        return bool(metadata[TAG] == tag)
    suffix = getattr(job, "user_provided_suffix", None)
    return bool(suffix == f"em-{tag[:SUFFIX_DIGITS]}")


def _state(job: Any) -> JobState:
    """Check a job: the client builds its types unchecked."""
    try:
        return JobState.model_validate(job.model_dump() if hasattr(job, "model_dump") else job)
    except ValidationError as error:
        raise ApiUnavailable(
            f"the API does not tell a job in OpenAI's format: {first_mistake(error, 'the job')}"
        ) from error
