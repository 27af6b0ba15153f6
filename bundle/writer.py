"""What is written into a bundle: entries of files, the manifest, and files in place of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmt import strict_json
from cmt.bundle.manifest import MANIFEST, SEAL, Manifest, files_of, parse_manifest, seal_of
from cmt.bundle.reader import OpenBundle, read_text
from cmt.bundle.replacing import replacing
from cmt.errors import InputError
from cmt.files import sha256_file
from cmt.targets.entries import FileEntry


def describe_file(root: Path, path: Path) -> FileEntry:
    """A file's entry in the manifest."""
    return {
        "path": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json and its hash; last of all, for it says that the bundle is whole."""
    content = strict_json.dump(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SEAL).write_bytes(seal_of(content))


@contextmanager
def replacing_files(bundle: OpenBundle) -> Iterator[Path]:
    """A folder whose files, a manifest among them, replace the bundle's when the block ends well.

    No other process may do so meanwhile.

    Raises:
        InputError: the bundle cannot be written to, another process is writing to it, or it has
            become another one since it was opened.
    """
    from filelock import Timeout

    def current_manifest() -> Manifest:
        return parse_manifest(read_text(bundle.path, MANIFEST))

    def names() -> set[str]:
        return {MANIFEST, SEAL, *(entry["path"] for entry in files_of(current_manifest()))}

    try:
        with replacing(bundle.path, names) as new:
            current = current_manifest()
            if current | {"reports": []} != bundle.manifest | {"reports": []}:
                raise InputError(
                    f"{bundle.path} was replaced while it was measured: the same command measures "
                    "what is there now"
                )
            yield new
    except Timeout as error:
        raise InputError(f"another cmt-bench is writing to {bundle.path}: try again") from error
    except OSError as error:
        raise InputError(
            f"cannot write to {bundle.path} ({error.strerror}): copy the bundle to where you may"
        ) from error
