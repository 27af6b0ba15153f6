"""Reports in the formats that people read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cmt.printing import printable

TEMPLATES = Path(__file__).parent / "templates"


# Punctuation with a meaning in Markdown, anywhere or between words, and at the text's start.
_MARKUP = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")


_LINE_START = re.compile(r"^([-+=]+|\d+[.)])(?=\s|$)")


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, also within a table."""
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKUP.sub(lambda match: "\\" + match[0], text)
    return _LINE_START.sub(lambda match: match[0][:-1] + "\\" + match[0][-1], text)


def _printable_html(value: Any) -> Any:
    # What a macro returns is escaped already and keeps its lines.
    return value if hasattr(value, "__html__") else printable(value)


def render(template: str, page: Any) -> str:
    """A page in the format of the template's name: HTML, or GitHub-flavoured Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    is_html = ".html" in template
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable_html if is_html else escape_markdown,
    )
    return environment.get_template(template).render(page=page)
