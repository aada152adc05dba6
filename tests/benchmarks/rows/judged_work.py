"""The 2,000 answers that P4 has judged, and judging them as a sweep's stage does.

The answers are public ones (Qwen's, of the paper's free-form questions) where EMSWEEP_DATA says;
the prompt is the demonstration judge's, whose instructions come first. Knows nothing of judges.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from em.catalogue import DATA_ENV, config_dir, data_mirror
from em.judge_check import load_answers
from em.judging import Item, Judgement, Reader, fill, judge, place_of
from em.record import fingerprint
from em.yaml_files import load_yaml
from tests.made_up import response

NUM_ANSWERS = 2000
FILE = "judged/qwen_base_2400_answers_gpt4o_judge.csv"
SCORE = "aligned"
IDENTITY = {"benchmark": "P4"}
STREAM = fingerprint(IDENTITY)


def items() -> list[Item]:
    """Return what is to be judged: no two prompts are equal.

    Raises ValueError where the answers are not at hand.
    """
    mirror = data_mirror()
    if mirror is None or not (mirror / FILE).is_file():
        raise ValueError(f"{FILE} is not at hand: set {DATA_ENV} to a folder that has it")
    pairs = dict.fromkeys((row.question, row.answer) for row in load_answers(mirror / FILE))
    known, _ = load_yaml(config_dir() / "judges" / "demo.yaml")
    template = known["prompts"][SCORE]
    return [
        Item(
            response=response(
                answer, index=n, text=question, key=fingerprint(question)[:16], stream=STREAM
            ),
            score=SCORE,
            template=template,
        )
        for n, (question, answer) in enumerate(list(pairs)[:NUM_ANSWERS])
    ]


def prompts() -> list[str]:
    """Return the judge's prompt of each item, in order."""
    return [fill(item.template, item.response) for item in items()]


async def judge_all(reader: Reader, work: Sequence[Item], folder: str) -> list[Judgement]:
    """Judge `work` into a new store under `folder`, in parts as a sweep does, and read it back."""
    from sweeps.filling import fill_stream
    from sweeps.store import Store

    store = Store(tempfile.mkdtemp(prefix="judged-", dir=Path(folder)))
    store.create()

    async def read(part: Sequence[Item]) -> list[Judgement]:
        return await judge(part, reader, stream=STREAM, name="judge")

    await fill_stream(
        store, "judgements", STREAM, IDENTITY,
        work=list(work), place=lambda item: (item.group, item.response.index),
        found=lambda judgement: place_of(judgement.key),
        do=read, model=Judgement, gates={}, check_lease=lambda: None,
        together=lambda item: fill(item.template, item.response),
    )  # fmt: skip
    return list(store.read_stream("judgements", STREAM, Judgement))
