"""Files by their content."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sources_of(package: ModuleType) -> list[Path]:
    """All Python files of a package and of those within it, which a checkout has beside it."""
    root = Path(package.__path__[0])
    folders = [folder for folder in (*root.iterdir(), *root.parent.iterdir()) if folder.is_dir()]
    found = [root]
    for name in sorted({folder.name for folder in folders if folder.name.isidentifier()}):
        spec = find_spec(f"{package.__name__}.{name}")
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent)
    return sorted({file for folder in found for file in folder.rglob("*.py")})
