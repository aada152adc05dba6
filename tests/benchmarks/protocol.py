"""What it costs a stage, beside its work, to be claimed and recorded.

    python tests/benchmarks/protocol.py [STAGES]        default: 500

For each stage of a cell, as a run does it: the attempt is noted, the lease taken, asked for and
given back, the record written, the attempt noted as finished. The store is below the folder that
TMPDIR names: a disk, for what a disk costs (nothing is forced to it where that is memory). ext4
passes over every file that was removed within the last minute: wait for that long between two runs.
"""

import itertools
import json
import platform
import statistics
import sys
import tempfile
import time

from em.record import fingerprint
from sweeps.attempts import Beat, CellLog
from sweeps.leases import holding
from sweeps.provenance import Moment, provenance
from sweeps.store import Store, open_store


def one_stage(store: Store, beat: Beat, number: int) -> dict[str, float]:
    """Go through one stage without work; return the milliseconds of each part."""
    key = fingerprint(number)
    log = CellLog(store, "bench", f"cell-{number}", driver=beat.driver, attempt=1)
    made = provenance(started=Moment.now())
    times = [time.perf_counter()]
    log.write("generate", "running")
    times.append(time.perf_counter())
    with holding(store, [key], beat.holder) as check:
        check()
        times.append(time.perf_counter())
        store.finish_stream(
            "responses", key, {"of": number}, parts=[], covers={"a": range(100)}, provenance=made
        )
        times.append(time.perf_counter())
    times.append(time.perf_counter())
    log.write("generate", "finished")
    times.append(time.perf_counter())
    begun, taken, recorded, returned, noted = (
        1000 * (after - before) for before, after in itertools.pairwise(times)
    )
    return {"lease": taken + returned, "attempt": begun + noted, "record": recorded}


def main(num: int) -> None:
    """Print the median of each part, and of the sum, in milliseconds a stage."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store")
        store.create()
        beat = Beat(store, "bench")
        stages = [one_stage(store, beat, number) for number in range(num)]
        beat.close()
    found = {name: statistics.median(s[name] for s in stages) for name in stages[0]}
    found["all"] = statistics.median(sum(stage.values()) for stage in stages)
    told = {name: round(value, 2) for name, value in found.items()}
    print(json.dumps({"stages": num, "machine": platform.machine(), "ms a stage": told}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
