"""Wait until a Ray cluster has so many nodes: wait_for_nodes.py HOST:PORT NODES [SECONDS].

Used by local.sh and slurm.sbatch. Knows nothing of what the nodes are for.
"""

import sys
import time

POLL_S = 1.0


def main(address: str, wanted: int, limit_s: float) -> None:
    """Return when `wanted` nodes are alive; exits with a message after `limit_s` seconds."""
    import ray

    ray.init(address=address, logging_level="error")
    end = time.monotonic() + limit_s
    while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > end:
            sys.exit(f"{alive} of {wanted} nodes have joined {address} within {limit_s:g} s")
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 120.0)
