"""Archives that authors protect from scrapers with the tool `easy-dataset-share`: one file of one.

Such an archive is a zip, encrypted with a password its authors publish, with marked rows (canaries)
mixed in. Only the wanted file is kept, in the user's cache. Knows nothing of catalogues or rows.
"""

import re
import tempfile
from pathlib import Path

from pydantic import Field

from em.downloads import NotAtHand
from em.record import Record


class ProtectedArchive(Record):
    """Which file of a protected archive is meant; `password` is the one its authors publish."""

    member: str = Field(min_length=1, description="the file's path inside the archive")
    password: str | None = None


def unpack(archive: Path, wanted: ProtectedArchive, target: Path) -> None:
    """Write one file of `archive`, freed of canaries, to `target`; nothing else stays unpacked.

    Raises NotAtHand where the tool is not installed, ValueError where the password is wrong, the
    file is no such archive, or the archive has no file of that name.
    """
    try:
        # Imports requests and cryptography, and only protected sets need it.
        from easy_dataset_share import canary, zipping
    except ImportError as error:
        raise NotAtHand(
            f"{archive} is protected with easy-dataset-share; unpacking it needs the extra 'data': "
            f"pip install 'em-sweeps[data]' ({error})"
        ) from error
    # Beside the target: it can be renamed into place, and no other folder ever holds the rows.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:
        try:
            zipping.unzip_and_decrypt(str(archive), wanted.password, folder)
        except Exception as error:  # zipfile, cryptography and the tool raise kinds of their own
            raise ValueError(
                f"{archive}: not unpacked: {error}; check the entry's password, or fetch the "
                "archive again"
            ) from error
        root = Path(folder).resolve()
        member = (root / wanted.member).resolve()
        if not member.is_relative_to(root) or not member.is_file():
            held = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
            raise ValueError(
                f"{archive}: it has no file {wanted.member!r}; it holds {', '.join(held) or 'none'}"
            )
        for marked in canary.detect_canary_files(folder):
            text = canary.extract_canary_string_from_content(marked)
            if text:
                canary.remove_canary_from_file(member, text)
        left = re.search(
            r"CANARY_DATASET_\w+", member.read_text(encoding="utf-8", errors="replace")
        )
        if left:
            raise ValueError(
                f"{archive}: {wanted.member} still holds the canary {left.group()[:40]}, which "
                "would be trained on: the archive names another canary, or none"
            )
        member.rename(target)
