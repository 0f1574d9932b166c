"""Every page as a browser shows it: nothing is wider than its column, or cut off, or from the network.

`make check-docs` builds the pages and runs this. It takes Chromium, Playwright's or that of the system.
"""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, sync_playwright

SITE = Path(__file__).parents[1] / "build" / "docs"
PAGES = sorted(SITE.rglob("*.html"))
FAULTS = """() => {
  const column = document.querySelector(".content");
  const { left, right } = column.getBoundingClientRect();
  const name = (e) => `<${e.localName} class="${e.getAttribute("class") ?? ""}">`;
  const isSeen = (e) => e.checkVisibility() && e.offsetWidth !== 1 && !e.closest(".katex-mathml");
  const isOutside = (e) => {
    const box = e.getBoundingClientRect();
    return box.left < left - 1 || box.right > right + 1;
  };
  const hasBar = (e) =>
    ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.offsetHeight > e.clientHeight;
  const faults = [];
  const visit = (e) => {  // what a scroll bar reaches, and what a fault holds, is not looked at
    if (!isSeen(e)) return;
    const isCut = getComputedStyle(e).overflowX === "hidden" && e.scrollWidth > e.clientWidth;
    if (isOutside(e) || isCut) faults.push(`${name(e)} is wider than its column`);
    else if (e.localName !== "svg" && !hasBar(e)) [...e.children].forEach(visit);
  };
  [...column.children].forEach(visit);
  for (const formula of column.querySelectorAll(".math")) {
    if (!formula.querySelector(".katex")) faults.push(`${name(formula)} is not typeset`);
    for (const e of [formula, ...formula.querySelectorAll("*")])
      if (isSeen(e) && getComputedStyle(e).overflowY !== "visible" && e.scrollHeight > e.clientHeight)
        faults.push(`${name(e)} is ${e.scrollHeight} px high, of which ${e.clientHeight} are seen`);
  }
  for (const { localName, clientWidth, scrollWidth } of [document.documentElement, column])
    if (scrollWidth > clientWidth)
      faults.push(`the ${localName} is ${scrollWidth} px wide, of which ${clientWidth} are seen`);
  for (const { name } of performance.getEntriesByType("resource"))
    if (!name.startsWith("file:")) faults.push(`it fetches ${name}`);
  return faults;
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except Error:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            if path is None:
                pytest.exit("there is no browser: run `playwright install chromium`", 1)
            browser = launch(playwright, path)
        yield browser
        browser.close()


def launch(playwright: Playwright, path: str | None = None) -> Browser:
    """Chromium with scroll bars, which are part of what is looked at."""
    return playwright.chromium.launch(
        executable_path=path, args=["--no-sandbox"], ignore_default_args=["--hide-scrollbars"]
    )


@pytest.fixture(scope="session", params=itertools.product((1280, 390), ("light", "dark")), ids=str)
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    yield page
    page.close()


def test_there_are_pages() -> None:
    assert SITE / "index.html" in PAGES, "build them: `make docs`"


def faults_of(page: Page, path: Path) -> list[str]:
    """What is wrong with a page, in words."""
    page.goto(path.as_uri())
    page.evaluate("document.fonts.ready")
    found: list[str] = page.evaluate(FAULTS)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE)))
def test_everything_is_seen(page: Page, path: Path) -> None:
    assert faults_of(page, path) == []


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ("<p>short</p>", []),
        ("<div style='overflow-x: auto'><p style='width: 2000px'>long</p></div>", []),
        ("<p style='width: 2000px'>long</p>", ["<p class", "the html is", "the div is"]),
        ("<div style='overflow: hidden'><p style='width: 2000px'>long</p></div>", ["<div class"]),
        ("<img src=https://example.com/image.png>", ["it fetches https://example.com/image.png"]),
        ("<p class=math>a</p>", ['<p class="math"> is not typeset']),
        (
            "<p class=math style='overflow: hidden; height: 9px'><b class=katex>a<br>b</b></p>",
            ['<p class="math"> is'],
        ),
    ],
)
def test_a_fault_is_noticed(page: Page, body: str, faults: list[str], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><div class=content>{body}</div>")
    found = faults_of(page, path)
    assert len(found) == len(faults), found
    assert all(map(str.startswith, found, faults)), found
