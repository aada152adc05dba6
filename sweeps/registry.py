"""Which sweep a name in the store stands for. Knows nothing of how far it is."""

from typing import Any

from pydantic import ValidationError

from em.api_models import ApiModelConfig
from em.models import ModelConfig
from sweeps.files import Damaged, StoreError, tell_once
from sweeps.plan import SweepPlan
from sweeps.resolved import Resolved
from sweeps.spec import NOT_IN_KEY, SweepSpec
from sweeps.store import Store


def register(plan: SweepPlan, store: Store) -> None:
    """Write down that the store holds this sweep, and what its names stand for.

    Raises StoreError where it holds another sweep under this name: a model, variant, evaluation,
    judge or training that both have and that is not the same. Adding and removing them is growth.
    """
    check_same(plan, store)
    store.write_record(_place(plan, store), plan.spec)
    if plan.resolved is not None:
        store.write_record(_place(plan, store, "resolved"), plan.resolved)


def check_same(plan: SweepPlan, store: Store) -> None:
    """Raise StoreError where the store holds another sweep under this name; writes nothing."""
    before = registered(plan, store)
    if before is not None:
        _check_same(before, plan.spec, store)


def registered(plan: SweepPlan, store: Store) -> SweepSpec | None:
    """Return the spec of this name that the store holds. Raises StoreError where it is no spec.

    A torn file tells of none: artefacts go by their keys, and the next run writes it anew.
    """
    try:
        old = store.read_json(_place(plan, store))
    except Damaged as error:
        tell_once(f"{error}; whether it was the same sweep cannot be told")
        return None
    try:
        return SweepSpec.model_validate(old) if old is not None else None
    except ValidationError as error:
        raise StoreError(
            f"{store.url}/{_place(plan, store)} was written by another version of this program "
            f"({error.errors()[0]['msg']}): give this spec another name, or another store"
        ) from error


def known_names(plan: SweepPlan, store: Store) -> Resolved | None:
    """Return what the sweep's names stood for when it last ran; None for one that did not."""
    return store.files.read_record(_place(plan, store, "resolved"), Resolved)


def _place(plan: SweepPlan, store: Store, what: str = "spec") -> str:
    return f"{store.sweep_dir(plan.spec.name)}/{what}.json"


def known(plan: SweepPlan, store: Store) -> bool:
    """Whether the store holds a sweep of this name."""
    return store.files.read(_place(plan, store)) is not None


def _told_apart(item: Any) -> Any:
    """Return a part of a spec; a model behind an API without key, pace and budget."""
    if not isinstance(item, ModelConfig) or item.api is None:
        return item
    api = ApiModelConfig(url=item.api.url, model=item.api.model, training=item.api.training)
    return item.model_copy(update={"api": api})


def _check_same(old: SweepSpec, new: SweepSpec, store: Store) -> None:
    def differ(what: str, was: object, now: object, own_name: str = "") -> StoreError:
        return StoreError(
            f"{store.url} holds another sweep under the name {new.name!r}: {what} was {was!r} "
            f"there and is {now!r} here. Put it back{own_name}, or give this spec another name, or "
            "another store"
        )

    for kind in ("models", "variants", "evaluations", "judges"):
        before = {item.name: _told_apart(item) for item in getattr(old, kind)}
        for item in map(_told_apart, getattr(new, kind)):
            was = before.get(item.name)
            if was is None or was == item:
                continue
            fields = type(item).model_fields
            # How many are wanted, when, who judges, by what definition it is counted, and how fast,
            # is not what a thing is.
            free = {"samples", "ids", "exclude", "tasks", "limit", "at", "judges", "metric",
                    "concurrency", "api_key_env", "demonstration", "budget"}  # fmt: skip
            field = next(
                (f for f in fields if f not in free and getattr(was, f) != getattr(item, f)), None
            )
            if field:
                raise differ(
                    f"{kind}.{item.name}.{field}", getattr(was, field), getattr(item, field),
                    f", or give it a name of its own: adding {kind} keeps what is finished",
                )  # fmt: skip
    for field in type(new.training).model_fields:
        was, now = getattr(old.training, field), getattr(new.training, field)
        if was != now and field not in NOT_IN_KEY:
            raise differ(f"training.{field}", was, now)
    for field in ("mode", "dtype"):
        was, now = getattr(old.serving, field), getattr(new.serving, field)
        if was != now:
            raise differ(f"serving.{field}", was, now)
