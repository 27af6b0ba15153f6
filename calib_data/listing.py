"""Which files below a folder are images, told by their content, and what is left out and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cmt.calib_data.decoding import HEAD, kind_of
from cmt.errors import InputError
from cmt.printing import printable

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
"""What is so named is meant as an image, and reported as unreadable where it is none."""
_SYSTEM = {
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
    *("__macosx", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
_SYSTEM_BEGINNINGS = (".", "synofile_thumb_")
NO_IMAGE = "no image of a kind that is read"
SYSTEM = "hidden, or a system's thumbnails and notes"
NO_FILE = "no regular file"
DEAD_LINK = "a link that leads nowhere"
NO_LEAVE = "may not be read"
AGAIN = "a linked folder that leads back, or is there already"
LOOSE = "beside the class folders"
_NAMED = 3
"""Of what is left out, in a line for people."""


@dataclass
class Listing:
    """Images below a folder, sorted, and the files and folders that are not used, by reason."""

    images: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, path: Path, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def add(self, other: Listing) -> None:
        """Take in what another folder has."""
        self.images += other.images
        for reason, paths in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)

    @property
    def left_out_count(self) -> int:
        return sum(map(len, self.left_out.values()))

    def remarks(self, root: Path) -> list[str]:
        """A line for each reason, with the first names."""
        return [
            f"{printable(root)}: {len(paths)} left out ({reason}): "
            + named([path.relative_to(root).as_posix() for path in sorted(paths)])
            for reason, paths in self.left_out.items()
        ]


def named(names: Sequence[str]) -> str:
    """The first names, and how many there are beside them."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(printable, names[:_NAMED])) + more


def is_system(name: str) -> bool:
    """Whether a file or folder belongs to a system or a program, and is nobody's image."""
    return name.lower() in _SYSTEM or name.lower().startswith(_SYSTEM_BEGINNINGS)


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder, sorted; raises InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(folder, entry.name) for entry in entries)
    except OSError as error:
        _refuse_folder(error)


def images_below(folder: Path, root: Path) -> Listing:
    """All images below a folder; linked folders are followed, each folder once.

    Args:
        root: the whole set, which no link within it may bring in again.
    """
    found, above = Listing(), root.resolve()
    seen, pending = {_identity(folder)}, [folder]
    while pending:
        for path in entries_of(pending.pop()):
            if path.is_dir() and not is_system(path.name):
                back = path.is_symlink() and above.is_relative_to(path.resolve())
                if back or _identity(path) in seen:
                    found.leave_out(path, AGAIN)
                else:
                    seen.add(_identity(path))
                    pending.append(path)
            else:
                _take(path, found)
    found.images.sort()
    return found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def loose_files(paths: Iterator[Path]) -> Listing:
    """The images among the files of one folder."""
    found = Listing()
    for path in paths:
        _take(path, found)
    return found


def _take(path: Path, found: Listing) -> None:
    reason = _why_not(path)
    if reason is None:
        found.images.append(path)
    else:
        found.leave_out(path, reason)


def _why_not(path: Path) -> str | None:
    """Why a path that is no folder is not used; None for what is, or is meant as, an image."""
    if is_system(path.name):
        return SYSTEM
    meant = path.suffix.lower() in SUFFIXES
    if not path.exists():  # with an image's name, reported later
        return None if meant else DEAD_LINK
    if not path.is_file():  # reading a pipe never ends
        return NO_FILE
    try:
        with path.open("rb") as file:
            image = kind_of(file.read(HEAD)) is not None
    except OSError:
        return None if meant else NO_LEAVE
    return None if image or meant else NO_IMAGE


def _refuse_folder(error: OSError) -> NoReturn:
    # Without a class that cannot be read, accuracy would be that of the others.
    raise InputError(
        f"cannot read the image folder {printable(error.filename)} ({error.strerror}): "
        "correct its permissions"
    ) from error
