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
    """Words that are no markup but for the code in backticks, which our messages have."""
    parts = text.replace("\n", " ").split("`")
    if len(parts) % 2 == 0:  # a lone backtick is one of the user's
        return _plain("`".join(parts))
    return "`".join(part.replace("|", "\\|") if number % 2 else _plain(part) for number, part in enumerate(parts))


def _plain(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\*_[]<>#|`" else char for char in text)
