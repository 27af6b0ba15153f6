"""Where images come from: the bundled Fashion-MNIST, IDX files, or folders of pictures."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmt.calib_data.decoding import read_image
from cmt.calib_data.image_range import OUTSIDE, ImageRange, show_range
from cmt.calib_data.limits import UnreadableImageError
from cmt.calib_data.listing import (
    AGAIN,
    LOOSE,
    Listing,
    entries_of,
    images_below,
    is_system,
    loose_files,
    named,
)
from cmt.calib_data.orientation import orientation_of
from cmt.errors import InputError
from cmt.files import sha256_file
from cmt.printing import printable

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
BUNDLED = Path(__file__).parent / "fashion_mnist"
FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
VALIDATION = "validation"
_STEMS = {VALIDATION: "t10k", "calibration": "calibration"}
"""What the names of a split's files begin with; MNIST's own for test images."""
UNREADABLE = "unreadable"
_LARGEST_RANK = 3  # images, rows, columns
LARGEST_IDX = 2**30
"""Bytes; ImageNet's validation images at 28 x 28 would be 40 million."""


class Origin(TypedDict):
    """Where a source's images are, as JSON, so that another process finds them by their keys.

    Attributes:
        folder: that keys are relative to, or that has the files of the `split`; empty where it is
            a bundled one.
    """

    folder: str
    split: str
    image_range: list[float] | None


class KeyedImages(Protocol):
    """Images that have names."""

    def key(self, index: int) -> str:
        """A stable name of the image within the source."""
        ...

    def load(self, index: int) -> Image:
        """Decode the image; raises UnreadableImageError."""
        ...

    def digest(self, index: int) -> str:
        """sha256 of the image's own bytes, as they are stored."""
        ...

    def origin(self) -> Origin:
        """For `reopened`."""
        ...


class ImageSource(KeyedImages, Protocol):
    """A fixed sequence of images with class indices (None where the source has no classes).

    Attributes:
        image_range: the scale of its images that state none; None where such are left out.
        left_out: how many files of where it is from are not used.
        remarks: lines for people on these, and on classes without an image.
    """

    description: str
    class_names: tuple[str, ...]
    labels: Sequence[int] | None
    image_range: ImageRange | None
    left_out: int
    remarks: Sequence[str]

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Changes whenever an image is added, removed, renamed or rewritten.

        Told from sizes and times where the images are files; `digest` reads them.
        """
        ...


class IdxImages:
    """Grey images and labels in the compressed IDX files that MNIST introduced."""

    image_range: ImageRange | None = None
    left_out = 0
    remarks: Sequence[str] = ()

    def __init__(
        self, images: Path, labels: Path, description: str, folder: str = "", split: str = ""
    ) -> None:
        self.description, self._folder, self._split = description, folder, split
        self.class_names: tuple[str, ...] = FASHION_LABELS
        self.pixels = read_idx(images)
        label_array = read_idx(labels)
        if self.pixels.ndim != 3 or label_array.shape != self.pixels.shape[:1]:
            raise InputError(f"{images} and {labels} do not belong together")
        if label_array.max(initial=0) >= len(self.class_names):
            raise InputError(f"{labels} has a label above {len(self.class_names) - 1}")
        self.labels: Sequence[int] | None = label_array.tolist()
        self._name = images.name

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return f"{self._name}#{index}"

    def origin(self) -> Origin:
        return {"folder": self._folder, "split": self._split, "image_range": None}

    def digest(self, index: int) -> str:
        return hashlib.sha256(self.pixels[index].tobytes()).hexdigest()

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.tobytes() + bytes(self.labels or ())).hexdigest()

    def load(self, index: int) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels[index])


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed IDX file of unsigned bytes; raises InputError when damaged."""
    try:
        with gzip.open(path) as file:
            return parse_idx(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}): copy it again") from error


def parse_idx(file: BufferedIOBase, name: object) -> NDArray[np.uint8]:
    """`read_idx` of an open file that is uncompressed already; `name` is for messages."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] > _LARGEST_RANK:
        raise InputError(f"{name} is no IDX file of unsigned bytes")
    header = file.read(4 * magic[3])
    shape = tuple(int(side) for side in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
    size = math.prod(shape)
    # What a small compressed file claims to hold may be any many bytes.
    if len(shape) == magic[3] and 0 < size <= LARGEST_IDX:
        body = file.read(size + 1)
        if len(body) == size:
            return np.frombuffer(body, np.uint8).reshape(shape)
    raise InputError(f"{name} does not hold what its header says: copy it again")


class FileImages:
    """Files below a folder, known to be meant as images."""

    def __init__(self, root: Path, paths: Sequence[Path], image_range: ImageRange | None) -> None:
        self._root, self._paths, self.image_range = root, paths, image_range

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return self._paths[index].relative_to(self._root).as_posix()

    def origin(self) -> Origin:
        stated = None if self.image_range is None else list(self.image_range)
        return {"folder": str(self._root), "split": "", "image_range": stated}

    def digest(self, index: int) -> str:
        try:
            return sha256_file(self._paths[index])
        except OSError:  # a link that leads nowhere
            return UNREADABLE

    def load(self, index: int) -> Image:
        return load_file(self._paths[index], self.image_range)


class FolderImages(FileImages):
    """`class/name.jpg` with classes in sorted order, or a flat folder without classes.

    Files are images by their content, whatever their names; links are followed. Where there are
    class folders, loose images do not count. Hidden files and folders never count, nor do what
    systems leave behind (`@eaDir`, `__MACOSX`, `Thumbs.db`). An empty class folder keeps its
    index. `remarks` say what is left out.

    Args:
        image_range: the scale of files that state none; None leaves them out.
    """

    def __init__(self, root: Path, image_range: ImageRange | None = None) -> None:
        if not root.is_dir():
            raise InputError(f"no image folder at {printable(root)}: give a folder of images")
        super().__init__(root, [], image_range)
        self.description = printable(root)
        folders, others = _divide(root)
        classes = [folder.name for folder in folders]
        for name in classes:
            if name != name.encode("utf-8", "replace").decode():  # no label of a manifest
                raise InputError(
                    f"{printable(root)} has a class folder {name!r}: rename it in UTF-8"
                )
        by_class = [images_below(folder, root) for folder in folders]
        listing = Listing(left_out=others.left_out)
        for found in by_class:
            listing.add(found)
        self.class_names: tuple[str, ...] = tuple(classes) if listing.images else ()
        self.labels: Sequence[int] | None = None
        if listing.images:
            self.labels = [i for i, found in enumerate(by_class) for _ in found.images]
            for path in others.images:
                listing.leave_out(path, LOOSE)
        else:
            listing.images = others.images
        self._paths = listing.images
        self.left_out = listing.left_out_count
        self.remarks: Sequence[str] = [*listing.remarks(root), *self._without_images(by_class)]
        if not self._paths:
            seen = f"; {'; '.join(self.remarks)}" if self.remarks else ""
            raise InputError(
                f"no images in {printable(root)}: expected class/name.jpg or name.jpg{seen}"
            )

    def _without_images(self, by_class: Sequence[Listing]) -> list[str]:
        """A line on the classes that have no image, if any."""
        pairs = zip(self.class_names, by_class, strict=False)
        empty = [name for name, found in pairs if not found.images]
        if not empty:
            return []
        return [
            f"{self.description}: {len(empty)} class folder(s) without an image: {named(empty)}"
        ]

    def fingerprint(self) -> str:
        lines = [f"{self.key(i)} {_state(path)}" for i, path in enumerate(self._paths)]
        return list_hash([*lines, *map(show_range, filter(None, [self.image_range]))])


def load_file(path: Path, image_range: ImageRange | None = None) -> Image:
    """`decoding.read_image`; all that it refuses is an UnreadableImageError with the path."""
    try:
        return read_image(path, image_range)
    except ImportError:
        raise
    except MemoryError as error:  # no reason to leave an image out
        raise MemoryError(f"out of memory while decoding {printable(path)}") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise UnreadableImageError(f"{printable(path)}: {printable(error)}") from error


def _divide(root: Path) -> tuple[list[Path], Listing]:
    """(class folders, what else is in the folder)."""
    classes, others = [], Listing()
    for path in entries_of(root):
        if is_system(path.name) or not path.is_dir():
            others.add(loose_files(iter([path])))
        elif root.resolve().is_relative_to(path.resolve()):
            # A link back up would pass every class's images off as one more class.
            others.leave_out(path, AGAIN)
        else:
            classes.append(path)
    return classes, others


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere
        return UNREADABLE
    return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What is made of an image.

    Attributes:
        readable: whether its EXIF data could be read.
        outside: its values outside of the range that its owner stated; None where it states its
            own.
    """

    made: T
    readable: bool
    outside: int | None


def load_as(source: KeyedImages, index: int, make: Callable[[Image], T]) -> Loaded[T]:
    """What is made of an image.

    Raises:
        UnreadableImageError: it cannot be decoded, or nothing can be made of it.
    """
    image = source.load(index)
    try:
        return Loaded(make(image), orientation_of(image)[1], image.info.get(OUTSIDE))
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        raise UnreadableImageError(f"{printable(source.key(index))}: {printable(error)}") from error


def bundled(split: str) -> IdxImages:
    """The bundled Fashion-MNIST: `validation` (10,000 test) or `calibration` (1,024 training)."""
    return _idx_images("", split, f"Fashion-MNIST, {split}, bundled")


def idx_test_images(folder: Path) -> IdxImages | None:
    """A folder's test images in MNIST's form, of Fashion-MNIST's classes; None without any."""
    if not (folder / f"{_STEMS[VALIDATION]}-images-idx3-ubyte.gz").is_file():
        return None
    return _idx_images(str(folder), VALIDATION, printable(folder))


def _idx_images(folder: str, split: str, description: str = "") -> IdxImages:
    """The images of a split in a folder, the bundled ones' without a name."""
    names = (f"{_STEMS[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = (Path(folder or BUNDLED, name) for name in names)
    return IdxImages(images, labels, description, folder, split)


def reopened(origin: Origin, keys: Sequence[str]) -> KeyedImages:
    """Images of a source by their keys, without another look at all that it has."""
    if origin["split"]:
        places = np.array([int(key.rpartition("#")[2]) for key in keys], np.int64)
        return Subset(_idx_once(origin["folder"], origin["split"]), places)
    root, stated = Path(origin["folder"]), origin["image_range"]
    image_range = None if stated is None else (stated[0], stated[1])
    return FileImages(root, [root / key for key in keys], image_range)


_idx_once = cache(_idx_images)


def choose(source: ImageSource, count: int | None, seed: int) -> NDArray[np.int64]:
    """`count` distinct indices in ascending order, drawn evenly from the classes.

    Every class gives the same number where it can; the same seed draws the same images.
    None, or a count that the source does not exceed, takes everything. A smaller count's
    images are among a larger one's.

    Raises:
        InputError: a count below 1.
    """
    if count is not None and count < 1:
        raise InputError(f"cannot choose {count} images: give a count of at least 1")
    total = len(source)
    if count is None or count >= total:
        return np.arange(total)
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    if source.labels is not None:
        # Sorting by "how many of my class came before me" deals the classes out in turn.
        labels = np.asarray(source.labels)[order]
        turn = np.empty(total, np.int64)
        for label in np.unique(labels):
            mine = labels == label
            turn[mine] = np.arange(mine.sum())
        order = order[np.argsort(turn, kind="stable")]
    return np.sort(order[:count])


class Subset:
    """Some images of a source, as a source of its own.

    Args:
        indices: which, in ascending order.
        part: what they are of the source, for its description; empty where they are all of it.
    """

    def __init__(self, source: ImageSource, indices: NDArray[np.int64], part: str = "") -> None:
        self.description = f"{source.description}, {part}" if part else source.description
        self.class_names: tuple[str, ...] = source.class_names
        labels = source.labels
        self.labels: Sequence[int] | None = None if labels is None else [labels[i] for i in indices]
        self.image_range = source.image_range
        self.left_out, self.remarks = source.left_out, source.remarks
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(self._indices[index])

    def load(self, index: int) -> Image:
        return self._source.load(self._indices[index])

    def origin(self) -> Origin:
        return self._source.origin()

    def digest(self, index: int) -> str:
        return self._source.digest(self._indices[index])

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def hold_out(
    source: ImageSource, count: int, held: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of `count` images, and of up to `held` others; both evenly of all classes.

    Where the source has too few for both, a quarter of its images are held out.
    """
    total = len(source)
    held = min(held, max(total // 4, total - count))
    count = min(count, total - held)
    chosen = choose(source, count, seed)
    return chosen, np.setdiff1d(choose(source, count + held, seed), chosen)


def list_hash(keys: Sequence[str]) -> str:
    """sha256 of the newline-joined keys: which images, in which order."""
    # File names need not be UTF-8; their odd bytes go in as they are.
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()
