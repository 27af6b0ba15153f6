"""The guide's notebook, run whenever the documentation is built: a hook of mkdocs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NOTEBOOK = "guide/notebook.ipynb"
_MOST_SECONDS = 600
"""For one cell; beyond, or where a cell fails, the documentation is not built."""


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the pages that it found; adds the one that is made here."""
    from mkdocs.structure.files import File

    text, pictures = page(Path(config.docs_dir, NOTEBOOK))
    place = Path(NOTEBOOK)
    files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, str(place.with_name(name)), content=content))
    return files


def page(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown with the outputs that it has here, and their pictures by name."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    book = nbformat.read(notebook, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(
            book,
            timeout=_MOST_SECONDS,
            startup_timeout=_MOST_SECONDS,
            resources={"metadata": {"path": folder}},
        ).execute()
    text, resources = MarkdownExporter().from_notebook_node(book)
    return text, resources["outputs"]
