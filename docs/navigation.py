"""What the site needs beyond `mkdocs.yml`: patterns in its navigation, pages of the codes, and paths for source links.

The pages of codes lie in `ratc/codes`, since `ratc explain` prints them; on the site they are `reference/codes/R….md`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
CODES = DOCS.parent / "ratc" / "codes"
#: Behind its language a block of a code's page has the name of its file: `yaml cluster`.
_FILE_BLOCK = re.compile(r"^```yaml (\S+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each pattern of the navigation by the pages that it stands for."""
    docs = Path(config.docs_dir)
    for section in config.nav or ():
        for pages in section.values():
            pages[:] = _expanded(pages, docs)
    return config


def _expanded(pages: list[Any], docs: Path) -> list[Any]:
    found: list[Any] = []
    for page in pages:
        if "*" not in page:
            found.append(page)
            continue
        rest = [path for path in docs.glob(page) if str(path.relative_to(docs)) not in found]
        rest.sort(key=lambda path: path.read_text(encoding="utf-8").split("\n", 1)[0].lower())
        found += [str(path.relative_to(docs)) for path in rest]
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each code."""
    for path in sorted(CODES.glob("R*.md")):
        text = _FILE_BLOCK.sub(r'```yaml title="\1.yaml"', path.read_text(encoding="utf-8"))
        page = f"{text}\n[All codes](../codes.md)\n"
        files.append(File.generated(config, f"reference/codes/{path.name}", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the codes' pages to where the site has them; of links to other sources only the path is shown."""
    if page.file.src_uri == "reference/codes.md":
        markdown = markdown.replace("](../../ratc/codes/", "](codes/")
    return _LINK.sub(lambda link: _shown(link, DOCS / page.file.src_uri), markdown)


def _shown(link: re.Match[str], page: Path) -> str:
    """A link of a page, or what stands for it if it leads to a file of the repository that the site does not have."""
    target = (page.parent / link[2]).resolve()
    if target.is_relative_to(DOCS) or not target.is_relative_to(DOCS.parent) or not target.exists():
        return link[0]  # a link within the site, or one that leads nowhere, which the build finds
    return f"{link[1]} (`{target.relative_to(DOCS.parent)}`)"
