"""The report page in headless Chromium, opened from a file, with and without JavaScript.

Needs Debian's `chromium`, which these tests install if root runs them, and the packages `playwright` and
`axe-playwright-python`. If one of them is missing, the tests are skipped, or fail with `RATC_TEST_BROWSER=always`;
`RATC_TEST_BROWSER=never` skips them always. `RATC_TEST_IMAGES=1` writes the pictures of docs/images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ratc.comparison.compare import compare
from ratc.comparison.model import Side
from ratc.plan import Value
from ratc.render.html.page import diff_page, spec_page
from tests.helpers import pages
from tests.helpers.pages import ratc
from tests.places import ROOT

pytestmark = pytest.mark.slow(every=True)  # they share the start of a browser

WISH = os.environ.get("RATC_TEST_BROWSER", "")
IMAGES = os.environ.get("RATC_TEST_IMAGES")

PICTURED = ROOT / "tests/changes/wider-model-needs-memory"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Of the rules of axe those of WCAG up to 2.2 AA, and its advice.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LIGHT = {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}}
DARK = {**LIGHT, "color_scheme": "dark"}
NARROW = {**LIGHT, "viewport": {"width": 320, "height": 640}}


def missing() -> str | None:
    """Why there is no browser to test in; None where there is one."""
    if WISH == "never":
        return "RATC_TEST_BROWSER=never"
    if not any(map(shutil.which, NAMES)) and (problem := _install()):
        return problem
    try:
        import axe_playwright_python  # noqa: F401
        import playwright  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed; it is among the development packages"
    return None


def _install() -> str | None:
    """Install Chromium where root on Debian may; returns why that is impossible, or None."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "there is no Chromium; on Debian: apt-get install chromium"
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:  # a fresh image knows no packages yet
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
        done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"apt-get does not install Chromium: {done.stderr.strip()[-300:]}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = missing()
    if reason:
        if WISH == "always":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)))
    # Its sandbox wants a kernel that lets root make namespaces, which containers do not have.
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=words)
        yield started
        started.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """A page of every kind."""
    folder = tmp_path_factory.mktemp("pages")
    sides = (side("old.yaml", 1, 64), side("new.yaml", 2, 32))
    whole = pages.whole(folder)
    made = {
        "spec": spec_page(whole),
        "too-large": spec_page(replace(whole, card_memory=pages.card_memory(fits=False))),
        "bare": spec_page(
            replace(whole, card_memory=None, drawing=None, cards=(), findings=(), points={}, unpredicted="CPU")
        ),
        "diff": diff_page(compare(*sides)),
        "hostile": spec_page(pages.hostile(folder)),
    }
    return {name: _written(folder / f"{name}.html", text) for name, text in made.items()}


def side(name: str, seed: int, total: int) -> Side:
    """One side of a difference with two causes, of which the second has a consequence."""
    micro = Value(total // 4, "derived", f"{total} / 4", ("spec:training.target_batch_size",))
    values = {"seed": Value(seed, "spec"), "training.micro_batch_size": micro}
    return Side(
        name, "local", values, {"training.target_batch_size": Value(total, "spec")}, findings=("R305: a warning",)
    )


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def open_page(browser, files) -> Iterator[Any]:
    """Opens a page from its file. At the end nothing may have been said on the console or asked of a network."""
    contexts, said = [], []

    def opened(name: str, **options: Any) -> Any:
        context = browser.new_context(**{**LIGHT, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto((files[name] if name in files else Path(name)).as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not said


KINDS = ("spec", "too-large", "bare", "diff", "hostile")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_axe_finds_no_accessibility_violation(open_page, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    # axe's own script is not of the page, whose policy forbids it.
    page = open_page(name, color_scheme=scheme, bypass_csp=True)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": TAGS}})
    assert found.response["passes"]
    assert not found.response["violations"], found.generate_report()


@pytest.mark.parametrize("name", KINDS)
def test_the_page_never_scrolls_sideways_at_any_width(open_page, name):
    for width in (320, 768, 1200):
        page = open_page(name, viewport={"width": width, "height": 640})
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.context.close()


def test_markup_in_names_runs_nothing_in_the_page(open_page):
    page = open_page("hostile")
    assert page.locator("img").count() == 0
    assert page.title() != "broken"
    assert page.evaluate("document.scripts.length") == 1


def test_the_content_security_policy_blocks_injected_scripts_and_images(browser, files):
    page = browser.new_context(**LIGHT).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(files["spec"].as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'broken'";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/x.png";
            document.body.append(image);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() != "broken"
    assert len([text for text in said if "Content Security Policy" in text]) == 2
    page.context.close()


def test_folds_open_and_close_by_keyboard(open_page):
    page = open_page("spec")
    row = page.locator("details.row", has_text="gradient_accumulation_steps").first
    chain = row.locator(".chain").first
    assert not chain.is_visible()
    row.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert chain.is_visible()
    assert "training.global_batch_size" in chain.inner_text()
    page.keyboard.press("Space")
    assert not chain.is_visible()


def test_every_control_is_reached_by_tab_from_the_top(open_page):
    page = open_page("spec")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))
    assert {"filter", "told", "Open all", "Close all"} <= reached
    assert page.locator("summary").count() > 40


def test_the_filter_shows_matching_rows_and_their_number(open_page):
    page = open_page("spec")
    total = page.locator("#items [data-item]").count()
    assert page.locator("#matches").inner_text() == f"{total} values"
    page.get_by_role("button", name="Close all").click()
    page.get_by_label("Filter").fill("GLOBAL_batch")
    shown = page.locator("#items [data-item]:visible")
    assert 0 < shown.count() < 10
    assert page.locator("#matches").inner_text() == f"{shown.count()} of {total} values"
    assert page.get_by_text("training.global_batch_size").first.is_visible()
    page.get_by_label("Filter").fill("nothing has this name")
    assert page.locator("#matches").inner_text() == f"0 of {total} values"
    assert page.locator("#items .group:visible").count() == 0
    page.get_by_label("Filter").fill("")
    assert page.locator("#items .group[open]").count() == 0, "the folds are as before"
    assert page.locator("#items .group:visible").count() > 5


def test_default_values_can_be_hidden(open_page):
    page = open_page("spec")
    page.get_by_label("without defaults").check()
    kinds = page.locator("#items [data-item]:visible").evaluate_all("rows => rows.map(row => row.dataset.item)")
    assert kinds
    assert "default" not in kinds


def test_a_link_to_a_value_opens_its_section_and_clears_the_filter(open_page):
    page = open_page("spec")
    page.get_by_role("button", name="Close all").click()
    page.get_by_label("Filter").fill("data_dir")
    page.locator(".tiles a", has_text="20 epochs").click()
    page.locator("#v\\.training\\.epochs").wait_for(state="visible")
    assert page.get_by_label("Filter").input_value() == ""


def test_the_copy_button_copies_the_file_unchanged(open_page):
    page = open_page("spec")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("summary", has_text="job.sbatch").click()
    page.get_by_role("button", name="Copy job.sbatch").click()
    page.get_by_role("button", name="Copied: job.sbatch").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == pages.FILES[0][1]


def test_differences_are_filtered_by_consequence(open_page):
    page = open_page("diff")
    assert page.locator("#matches").inner_text() == "3 changes"
    assert page.locator("#items > .change").count() == 2
    page.get_by_label("Consequence").select_option("memory")
    assert page.locator("#matches").inner_text() == "2 of 3 changes"
    page.get_by_label("Consequence").select_option("training")
    assert page.locator("#matches").inner_text() == "1 of 3 changes"
    assert page.locator("#items > .change:visible .path").all_inner_texts() == ["seed"]
    page.get_by_label("Filter").fill("walltime")
    assert page.locator("#matches").inner_text() == "0 of 3 changes"
    assert page.locator(".follows .change").first.is_hidden()


@pytest.mark.parametrize("name", ["spec", "diff"])
def test_without_javascript_all_content_is_shown_and_no_control(open_page, name):
    page = open_page(name, java_script_enabled=False)
    assert page.locator(".tools:visible, .copy:visible").count() == 0
    assert page.locator("[data-item]:visible").count() == page.locator("[data-item]").count()
    for summary in page.locator("details.file > summary").all():
        summary.click()
    assert page.locator("details.file pre:visible").count() == page.locator("details.file").count()


@pytest.mark.parametrize("scripted", [True, False])
def test_a_printed_page_opens_every_fold_and_hides_controls(open_page, scripted):
    page = open_page("spec", java_script_enabled=scripted)
    page.emulate_media(media="print")
    assert page.locator(".tools:visible, .copy:visible, nav:visible").count() == 0
    for selector in (".chain", "details.file pre", ".account"):
        assert page.locator(selector).first.is_visible()
        assert page.locator(selector).first.bounding_box()["height"] > 10
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.skipif(
    not IMAGES, reason="RATC_TEST_IMAGES is not set: the pictures of the documentation stay as they are"
)
@pytest.mark.parametrize(("name", "sides"), [("report", ["new"]), ("report-diff", ["old", "new"])])
def test_screenshots_for_the_documentation_are_taken(open_page, tmp_path, name, sides):
    specs = [f"{side}/spec.yaml" for side in sides]
    file = tmp_path / f"{name}.html"
    status, _, err = ratc("report", *specs, "--facts", "facts.yaml", "-o", str(file), folder=PICTURED)
    assert status == 0, err
    page = open_page(str(file), viewport={"width": 1000, "height": 1120})
    picture = ROOT / f"docs/images/{name}.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size < 200_000
