"""A bundle's report replaced by another one, as `measure.bench.save` does it."""

from __future__ import annotations

from typing import Any

from cmt.bundle.reader import OpenBundle
from cmt.bundle.writer import replacing_files
from cmt.report.document import put_report


def replace_report(bundle: OpenBundle, report: dict[str, Any]) -> None:
    with replacing_files(bundle) as new:
        put_report(bundle, report, new)
