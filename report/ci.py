"""What continuous integration shows of a comparison's requirements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from cmt.printing import printable
from cmt.report.rows import Requirements


def junit(required: Requirements, machines: Sequence[str]) -> str:
    """JUnit XML: a test for each machine, which fails with all that breaks a clause there."""
    policy = ",".join(required["clauses"])
    suite = ElementTree.Element("testsuite", name="cmt-report", tests=str(len(machines)))
    for machine in machines:
        broken = [line for line in required["failures"] if line.startswith(f"{machine}: ")]
        test = ElementTree.SubElement(
            suite, "testcase", classname="cmt-report", name=printable(f"{machine}: {policy}")
        )
        if broken:
            failure = ElementTree.SubElement(test, "failure", message=printable(broken[0]))
            failure.text = "\n".join(map(printable, broken))
    suite.set("failures", str(len(suite.findall("*/failure"))))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"


def github_annotations(failures: Sequence[str]) -> Iterator[str]:
    """Lines by which GitHub's runner shows errors beside a run (its "workflow commands")."""
    for failure in failures:
        text = printable(failure).replace("%", "%25")
        yield f"::error title=cmt-report::{text}"
