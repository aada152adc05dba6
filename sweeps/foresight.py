"""What a spec cannot show, said before it runs: too few seeds for an interval or for a claim.

Knows nothing of what is stored.
"""

from em.power import Design, Variances, half_width
from sweeps.claims import MIN_SEEDS
from sweeps.spec import UNTUNED, SweepSpec

# Between seeds of GPT-4o tuned on insecure code (Betley et al., arXiv 2502.17424): the largest that
# is published, and the smallest, of Qwen2.5-Coder-32B.
PUBLISHED_SDS = (0.12, 0.02)


def foreseen_weaknesses(spec: SweepSpec) -> list[str]:
    """Return a line for each thing that the spec asks for and cannot show."""
    seeds = len(spec.seeds)
    said = []
    tuned = [variant.name for variant in spec.variants if variant.name != UNTUNED]
    if tuned and seeds == 1:
        said.append("one seed: no interval over seeds can be given for any condition")
    if spec.claims and seeds < MIN_SEEDS:
        said.append(
            f"claims are decided by {MIN_SEEDS} seeds or more, and there are {seeds}: every "
            "verdict will be undecided"
        )
    bounds = [claim for claim in spec.claims if not claim.spread]
    if bounds and seeds > 1:
        large, small = (100 * _half_width(sd, seeds) for sd in PUBLISHED_SDS)
        said.append(
            f"{seeds} seeds decide what is more than about {small:.0f} points from a claim's "
            f"bound where seeds differ as the calmest published ones do (SD 2 points), and "
            f"{large:.0f} points where they differ as the noisiest (SD 12)"
        )
    return said


def _half_width(sd: float, seeds: int) -> float:
    parts = Variances(seed=sd**2, question=0, pairing=0, sampling=0)
    return half_width(parts, Design(seeds=seeds, questions=1, samples=1))
