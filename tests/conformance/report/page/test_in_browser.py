"""The page in a real browser: filters, opened cells, copying, keyboard, without its script, and accessibility by axe."""

import json
import re
import shutil
from pathlib import Path

import made_reports
import pytest

from conformance.report.page import documents, write
from conformance.report.page.documents import Documents

WANTED = "needs {}; for all of it: apt-get install -y chromium && pip install -c tests/constraints.txt -e '.[browser]'"
sync_api = pytest.importorskip("playwright.sync_api", reason=WANTED.format("playwright"))
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=WANTED.format("axe-playwright-python"))
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WANTED.format("chromium"))
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--headless", "--disable-background-networking", "--no-first-run",
             "--disable-component-update", "--disable-sync")
# To wait, sync_api.expect: wait_for_function polls with eval, which the policy of the page forbids.
PHONE, DESK = {"width": 360, "height": 780}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pages") / "site"
    write.write(str(place), made_reports.small())
    return place


@pytest.fixture
def opened(browser):
    """Opens a file in a new page. At the end no page may have written to the console, raised an error, or asked for anything
    but the files of the site."""
    contexts, said = [], []

    def open_(path: Path, fragment: str = "", **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


def rows(page) -> list[str]:
    """The ids of the rows of the matrix that can be seen."""
    return [row.split()[0] for row in page.locator(".matrix tbody tr:visible th").all_inner_texts()]


def test_filters(opened, site):
    page, newest = opened(site / "index.html"), made_reports.small().runs[-1]
    asked = newest["catalogue"]["requirements"]
    page.click("#open-all")
    assert rows(page) == sorted(asked)
    page.select_option("[name=status]", "fail")
    assert rows(page) == ["G00-04", "G00-05", "G01-02"]
    assert page.locator(".filter output").inner_text() == "3 requirements fit"
    page.select_option("[name=level]", "SHOULD")
    assert rows(page) == ["G01-02"]
    page.select_option("[name=profile]", "inference")
    assert rows(page) == []
    page.click("text=Show all")
    sync_api.expect(page.locator(".filter output")).to_have_text("")
    page.select_option("[name=group]", "G01")
    assert rows(page) == [id for id in sorted(asked) if id.startswith("G01")]


def test_a_cell_opens(opened, site):
    """A failure shows its evidence and its script. A pass shows the sentence, and the answer of this subject alone."""
    page = opened(site / "index.html", "#group-G00")
    cell = page.locator("a[href='#bad.py-Layer.G00-04']").first
    cell.click()
    dialog = page.locator("dialog")
    text = dialog.inner_text()
    for words in ("The layer MUST do what requirement G00-04 asks", "y = x Wᵀ", "got", "-4",
                  "4 / 0: it must be equal bit for bit", "likely cause", "import torch"):
        assert words in text, words
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and cell.evaluate("link => link === document.activeElement")
    page.locator(".matrix tr:has(th:has-text('G00-04')) td a").first.click()
    text = dialog.inner_text()
    assert "The layer MUST do what requirement G00-04 asks" in text
    assert re.search(r"good\s+pass\s+48\s+0.4", text) and "empty" not in text


def test_copying(opened, site):
    page = opened(site / "index.html", "#bad.py-Layer.G00-04", permissions=["clipboard-read", "clipboard-write"])
    page.locator("[id='bad.py-Layer.G00-04'] button.copy").click()
    sync_api.expect(page.locator('[id="bad.py-Layer.G00-04"] button.copy')).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == made_reports.SCRIPT


def test_by_keyboard(opened, site):
    """The Tab key gets into each table once; arrow keys go from cell to cell, Enter opens one and Escape leaves it."""
    page = opened(site / "index.html", "#group-G00")
    page.locator(".matrix td a").first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.hash") == "#bad.py-Layer.G00-04"
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible() and page.evaluate("document.activeElement.textContent") == "Close"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.hash") == "#bad.py-Layer.G00-04"
    assert page.locator("#group-G00 td a[tabindex='0']").count() == 1
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_without_its_script(opened, site):
    """A link opens what it leads to, and everything can be read."""
    page = opened(site / "index.html", java_script_enabled=False)
    assert not page.locator("#filter").is_visible()
    page.click("a[href='#group-G00'] >> nth=0")
    page.click(".matrix a[href='#bad.py-Layer.G00-04']")
    assert page.locator("[id='bad.py-Layer.G00-04'] pre").is_visible()
    page.click("[id='bad.py-Layer.G00-04'] a")
    assert page.locator("#G00-04 .sentence").is_visible()


def test_another_report_is_opened(opened, site, tmp_path):
    """Each status is what the file says, each failure has its evidence, and a file that is no report is refused in words."""
    run, page = made_reports.small().runs[-1], opened(site / "open.html")
    del run["catalogue"]["requirements"]["G00-01"]
    (tmp_path / "report.json").write_text(json.dumps(run))
    (tmp_path / "other.json").write_text("[1, 2")
    page.set_input_files("#file", tmp_path / "report.json")
    page.wait_for_selector(".report")
    assert page.locator(".report .pill").all_inner_texts() == [report["verdict"] for report in run["reports"]]
    for number, report in enumerate(run["reports"]):
        section = page.locator(".report").nth(number)
        shown = section.locator("details.group > details").evaluate_all(
            "all => all.map((one) => [one.querySelector('b').textContent, one.dataset.status])")
        assert shown == [[row["id"], row["status"]] for row in report["requirements"]]
    text = page.locator("main").evaluate("main => main.textContent")
    for words in ("4 / 0: it must be equal bit for bit", made_reports.SCRIPT, "a reason", "asks of it, always.",
                  "conformance run all"):
        assert words in text, words
    page.set_input_files("#file", tmp_path / "other.json")
    sync_api.expect(page.locator("#said")).to_contain_text("is no report")
    assert page.locator(".report").count() == 0


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=("light desk", "dark phone"))
def test_accessibility(opened, site, scheme, viewport):
    """axe finds nothing, with everything opened, and no page is wider than the screen."""
    write.write(str(site / "tests.html"), Documents(tests=[made_reports.TESTS]))
    for name in ("index.html", "subjects/bad.py-Layer.html", "open.html", "tests.html"):
        page = opened(site / name, color_scheme=scheme, viewport=viewport)
        if name == "open.html":
            page.set_input_files("#file", files={"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(
                made_reports.small().runs[-1]).encode()})
            page.wait_for_selector(".report")
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], name
        found = axe.Axe().run(page)
        assert found.violations_count == 0, (name, found.generate_report())
    page = opened(site / "index.html", "#group-G00", color_scheme=scheme, viewport=viewport)
    page.locator(".matrix td a").nth(1).click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_hostile_text_does_nothing(opened, tmp_path):
    """Neither in a page nor in a report that is opened in the browser does any text become markup or a script."""
    found = made_reports.hostile()
    write.write(str(tmp_path / "site"), Documents(*map(documents.cleaned, (found.runs, found.others, found.tests))))
    (tmp_path / "report.json").write_text(json.dumps(found.runs[0]))
    for path in (tmp_path / "site").rglob("*.html"):
        page = opened(path)
        if path.name == "open.html":
            page.set_input_files("#file", tmp_path / "report.json")
            page.wait_for_selector(".report")
        for link in page.locator(".matrix td a").all():
            link.evaluate("link => link.click()")
        assert page.evaluate("window.hacked") is None
        assert page.locator("img, svg[onload], [onerror]").count() == 0
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.content())
        assert made_reports.HOSTILE[0] in page.locator("body").evaluate("body => body.textContent")
