"""The site of the documentation: links hold, every page is in the navigation, and no other host is contacted."""

import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.places import ROOT

DOCS = ROOT / "docs"
#: What a browser loads by itself. A link that a reader may follow is none of it.
LOADED = re.compile(r"""<(?:(?:script|img|iframe|source|video)\b[^>]*\bsrc|link\b[^>]*\bhref)=["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Building is strict: it fails if a link or an anchor leads nowhere."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built_and_listed_in_the_navigation(site):
    shown = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        built = page.relative_to(DOCS).with_suffix(".html")
        assert (site / built).is_file()
        assert built.name == "index.html" or f'href="{built.as_posix()}"' in shown, built


def test_the_table_of_codes_links_to_a_page_for_each_code(site):
    table = (site / "reference/codes.html").read_text()
    codes = {path.stem for path in (ROOT / "ratc/codes").glob("R*.md")}
    assert codes == {path.stem for path in (site / "reference/codes").glob("R*.html")}
    assert codes == set(re.findall(r'href="codes/(R\d{3})\.html"', table))


def test_nothing_is_loaded_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        assert not LOADED.search(page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_no_page_shows_raw_markdown(site):
    """Tables, lists and fences that GitHub reads and Python-Markdown does not: it wants a blank line before a list."""
    left = []
    for page in site.rglob("*.html"):
        if not (article := re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)):
            continue
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", article[0], flags=re.DOTALL)
        for line in re.sub(r"<[^>]+>", "", text).splitlines():
            if re.search(r"^\s*(?:[-*]|\d+\.|#{1,4}|>) |\|.*\||\]\(|```|\*\*", line):
                left.append(f"{page.name}: {line.strip()[:80]}")
    assert not left, "\n".join(left)


def test_a_link_to_a_source_is_shown_as_its_path():
    """The site has no sources, and the repository no address that a page could know."""
    spec = importlib.util.spec_from_file_location("navigation", DOCS / "navigation.py")
    navigation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(navigation)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/lock.md"))

    def shown(text):
        return navigation.on_page_markdown(text, page, None, None)

    assert shown("see [the demo](../../specs/brain/config.yaml).") == "see the demo (`specs/brain/config.yaml`)."
    for kept in ("[data](../guides/data.md#cache)", "[none](../../no/such)", "![x](../images/report.png)", "[a](b.md)"):
        assert shown(kept) == kept


def test_git_ignores_the_built_site():
    assert "/build/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "site_dir: build/site" in (ROOT / "mkdocs.yml").read_text()
