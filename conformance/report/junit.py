"""Writes JUnit XML for CI systems: one suite per subject, one case per requirement.

A SHOULD that fails is a skipped case with a message, because it does not make a subject nonconformant. A subject without a
verdict has an error of its own: a suite that only skips would look like success."""

from xml.etree import ElementTree as xml

from conformance.report import output
from conformance.run.verdict import FAILING, Report


def write(path: str, reports: list[Report]) -> None:
    """Writes the file as a whole or not at all. Raises OSError."""
    root = xml.Element("testsuites", name="conformance")
    for report in (report.cleaned() for report in reports):
        suite = xml.SubElement(root, "testsuite", name=report.name)
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        if report.unloadable:
            case = xml.SubElement(suite, "testcase", classname=report.name, name="load", time="0")
            xml.SubElement(case, "error", message=report.unloadable)
            counts["tests"], counts["errors"] = 1, 1
        for requirement in report.planned:
            outcome = report.outcomes.get(requirement.id)
            if outcome is None:
                continue
            counts["tests"] += 1
            name = f"{requirement.id} {requirement.title}"
            classname = f"{report.name}.{requirement.group}"
            case = xml.SubElement(suite, "testcase", classname=classname, name=name, time=f"{outcome.seconds:.3f}")
            text = f"{requirement.sentence}\n{outcome.message}\n\n{outcome.reproduce or ''}"
            if outcome.status in FAILING and requirement.level == "MUST":
                kind = "failure" if outcome.status == "fail" else "error"
                xml.SubElement(case, kind, message=outcome.message, type=outcome.status).text = text
                counts["failures" if kind == "failure" else "errors"] += 1
            elif outcome.status != "pass":
                xml.SubElement(case, "skipped", message=f"{requirement.level} {outcome.status}: {outcome.message}")
                counts["skipped"] += 1
        if report.verdict in ("partial", "void", "error") and not report.unloadable:
            case = xml.SubElement(suite, "testcase", classname=report.name, name="verdict", time="0")
            xml.SubElement(case, "error", message=" ".join([f"{report.verdict}:", *report.void_since]), type=report.verdict)
            counts["tests"] += 1
            counts["errors"] += 1
        for name, count in counts.items():
            suite.set(name, str(count))
        suite.set("time", f"{report.seconds:.3f}")
    xml.indent(root)
    output.write(path, xml.tostring(root, encoding="utf-8", xml_declaration=True))
