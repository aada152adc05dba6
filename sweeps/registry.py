"""Which sweep a name in the store stands for. Knows nothing of how far it is."""

from pydantic import ValidationError

from sweeps.files import Damaged, StoreError, tell_once
from sweeps.plan import SweepPlan
from sweeps.spec import NOT_IN_KEY, SweepSpec
from sweeps.store import Store


def register(plan: SweepPlan, store: Store) -> None:
    """Write down that the store holds this sweep.

    Raises StoreError where it holds another sweep under this name: a model, variant, evaluation,
    judge or training that both have and that is not the same. Adding and removing them is growth.
    """
    check_same(plan, store)
    store.write_record(_place(plan, store), plan.spec)


def check_same(plan: SweepPlan, store: Store) -> None:
    """Raise StoreError where the store holds another sweep under this name; writes nothing.

    A torn file tells of none: artefacts go by their keys, and the next run writes it anew.
    """
    try:
        old = store.read_json(_place(plan, store))
    except Damaged as error:
        tell_once(f"{error}; whether it was the same sweep cannot be told")
        return
    if old is None:
        return
    try:
        before = SweepSpec.model_validate(old)
    except ValidationError as error:
        raise StoreError(
            f"{store.url}/{_place(plan, store)} was written by another version of this program "
            f"({error.errors()[0]['msg']}): give this spec another name, or another store"
        ) from error
    _check_same(before, plan.spec, store)


def _place(plan: SweepPlan, store: Store) -> str:
    return f"{store.sweep_dir(plan.spec.name)}/spec.json"


def known(plan: SweepPlan, store: Store) -> bool:
    """Whether the store holds a sweep of this name."""
    return store.files.read(_place(plan, store)) is not None


def _check_same(old: SweepSpec, new: SweepSpec, store: Store) -> None:
    def differ(what: str, was: object, now: object) -> StoreError:
        return StoreError(
            f"{store.url} holds another sweep under the name {new.name!r}: {what} was {was!r} "
            f"there and is {now!r} here. Give this spec another name, or another store"
        )

    for kind in ("models", "variants", "evaluations", "judges"):
        before = {item.name: item for item in getattr(old, kind)}
        for item in getattr(new, kind):
            was = before.get(item.name)
            if was is None or was == item:
                continue
            fields = type(item).model_fields
            # How many are wanted, and how fast, is not what a thing is.
            free = {"samples", "ids", "exclude", "concurrency", "api_key_env", "demonstration",
                    "budget"}  # fmt: skip
            field = next(
                (f for f in fields if f not in free and getattr(was, f) != getattr(item, f)), None
            )
            if field:
                raise differ(
                    f"{kind}.{item.name}.{field}", getattr(was, field), getattr(item, field)
                )
    for field in type(new.training).model_fields:
        was, now = getattr(old.training, field), getattr(new.training, field)
        if was != now and field not in NOT_IN_KEY:
            raise differ(f"training.{field}", was, now)
    for field in ("mode", "dtype"):
        was, now = getattr(old.serving, field), getattr(new.serving, field)
        if was != now:
            raise differ(f"serving.{field}", was, now)
