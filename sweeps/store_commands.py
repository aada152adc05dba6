"""The commands `emsweep store`: checking what is stored, and clearing what is left behind.

What they do is in sweeps.store_check and sweeps.store_gc.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.options import (
    DEFAULT_STORE,
    SOME_FAILED,
    STORE_ENV,
    Json,
    StoreOption,
    open_sweep,
)

store_app = typer.Typer(help="The store: check it against its hashes, clear what is left behind.")

MaybeSpec = Annotated[
    Path | None, typer.Argument(metavar="[SPEC]", help="only what this sweep refers to")
]
Specs = Annotated[list[Path] | None, typer.Argument(metavar="[SPEC]...", help="also keep these")]


@store_app.command("check")
def check(
    spec: MaybeSpec = None,
    store: StoreOption = None,
    as_json: Json = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="move what is damaged into damaged/ in the store")
    ] = False,
) -> None:
    """Compare every file with its record: hashes, rows, keys. Changes nothing without --repair."""
    from sweeps import store_check
    from sweeps.progress import Counted
    from sweeps.store_gc import check_quiet, check_still_quiet
    from sweeps.store_targets import everything, of_sweep

    if spec is not None:
        sweep, target = open_sweep(spec, store)
        targets = of_sweep(sweep)
    else:
        target = _open(store)
        targets = everything(target)
    before = check_quiet(target) if repair else frozenset()
    counted = Counted(sys.stderr, "checked", targets.num_artefacts)
    found = store_check.check_store(target, targets, on_checked=counted.step)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        _print_check(found)
    if not found.damages:
        return
    if not repair:
        if not as_json:
            print(
                "'emsweep store check --repair' moves these files aside; then 'emsweep run SPEC' "
                "makes again what is missing, and nothing else"
            )
        raise typer.Exit(SOME_FAILED)
    check_still_quiet(target, before)  # looking may have taken long
    folder = store_check.set_aside(target, found)
    print(f"moved to {target.url}/{folder}; 'emsweep run SPEC' makes it again", file=sys.stderr)


def _print_check(found: Any) -> None:
    unfinished = f", {found.num_unfinished} unfinished" if found.num_unfinished else ""
    print(f"{found.store}: {found.num_artefacts} artefacts checked{unfinished}")
    for damage in found.damages:
        print(f"  DAMAGED {damage.path}: {damage.what}")
    print(f"{len(found.damages)} damaged" if found.damages else "nothing is damaged")


@store_app.command("gc")
def gc(
    specs: Specs = None,
    store: StoreOption = None,
    unreferenced: Annotated[
        bool,
        typer.Option(
            "--unreferenced", help="also artefacts of no SPEC and no sweep that the store knows"
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove what is shown")] = False,
    as_json: Json = False,
) -> None:
    """Show unfinished attempts and other leftovers, with their sizes; remove them with --yes."""
    from sweeps import store_gc

    given = [(path, *open_sweep(path, store)) for path in specs or ()]
    if len({opened.url for _, _, opened in given}) > 1:
        raise ValueError("the specs name several stores: say which is meant, with --store")
    target = given[0][2] if given and not store else _open(store)
    before = store_gc.check_quiet(target)
    found = store_gc.leftovers(target, now=time.time())
    if unreferenced:
        plans = store_gc.all_plans(target, [(path, sweep) for path, sweep, _ in given])
        found = store_gc.without_nested([*found, *store_gc.unreferenced(target, plans)])
    if as_json:
        told = [one.model_dump() for one in found]
        print(json.dumps({"store": target.url, "removing": yes, "leftovers": told}, indent=1))
    else:
        for one in found:
            print(f"  {_size(one.num_bytes):>9}  {one.path}  {one.why}")
        total = _size(sum(one.num_bytes for one in found))
        print(f"{target.url}: {len(found)} leftovers, {total}")
    if not found:
        return
    if yes:
        store_gc.check_still_quiet(target, before)  # looking may have taken a while
        kept = store_gc.remove(target, found)
        beside = f", but for {len(kept)} that a driver has taken up meanwhile" if kept else ""
        print(f"removed{beside}", file=sys.stderr)
    elif not as_json:
        print("nothing was removed: --yes removes these")


def _open(store: str | None) -> Any:
    from sweeps.store import open_store

    target = open_store(store or os.environ.get(STORE_ENV) or DEFAULT_STORE)
    if target.files.read("store.json") is None:
        raise ValueError(f"{target.url} holds no store: name one with --store, or give a SPEC")
    return target


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
