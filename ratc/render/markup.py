"""Words and values in Markdown, so that nothing in them is read as markup."""

from __future__ import annotations


def code(text: str) -> str:
    """Inline code that nothing in the text can leave, in a table either."""
    fence = "`"
    while fence in text:
        fence += "`"
    space = " " if text.startswith("`") or text.endswith("`") else ""
    text = text.replace("|", "\\|").replace("\n", " ")
    return f"{fence}{space}{text}{space}{fence}"


def escape(text: str) -> str:
    """Words that are no markup; what stands in backticks stays code."""
    return "".join(f"\\{char}" if char in "|<>*_[]\\" else char for char in text.replace("\n", " "))
