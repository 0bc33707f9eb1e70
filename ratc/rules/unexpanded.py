"""R234: no path holds a variable, a home or a template of another tool: nothing that reads the spec fills them in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values
from ratc.spec import keys

#: Free values that may hold paths.
_FREE = ("environment.variables", "data.args", "model.args", "training.loss_args", "training.optimizer_args")
#: `$NAME`, `${NAME}`, `${oc.env:NAME}`, `%NAME%`, `{{ NAME }}`, `~user`, `$(command)`, `` `command` ``. `~` and `~/`
#: are filled in by the scripts.
_TEMPLATE = re.compile(
    r"(?<!\s)\$(?:\{[^}]*\}?|\([^)]*\)?|[A-Za-z_]\w*)|%[A-Za-z_]\w*%|\{\{.*?\}\}|`[^`]+`|^(?:(?:\.\.?/)*~)[^/\s]+",
    re.ASCII,
)
#: A word in a path that a person was to replace.
_PLACEHOLDER = re.compile(r"<[^<>/]+>")
#: A path from an option or a variable was made absolute, and has lost a slash.
_ADDRESS = re.compile(r"(?:^|/)([A-Za-z][A-Za-z0-9+.-]+):/")
_NAMED = re.compile(r"\$\{(?:oc\.)?env[:.]([A-Za-z_]\w*)[^}]*\}|\$\{env:([A-Za-z_]\w*)\}|%([A-Za-z_]\w*)%")


def check(settings: Values) -> Iterator[Diagnostic]:
    """Yield a warning for every path and every free value with a variable in it: it is taken literally."""
    options = {path: f'--{name} "{{}}"' for name, path in keys.short_names().items()}
    paths = {path: options.get(path, f'--set "{path}={{}}"') for path in keys.paths()}
    folders = (path for path in settings if path.startswith("tasks.") and path.endswith(".data.folder"))
    paths |= {path: f'--set "{path}={{}}"' for path in folders}
    for path, option in paths.items():
        text = settings[path].value if path in settings else None
        if not isinstance(text, str):
            continue
        if path in keys.paths("folder") and (match := _ADDRESS.search(text)):
            message = f"`{path}` is an address (`{match[1]}://`), but it is read as the name of a folder"
            advice = "copy the data to a file system, or mount it there, and name that folder"
            yield Diagnostic("R234", message, settings[path].span, (), (advice,), Severity.WARNING)
        elif match := _TEMPLATE.search(text) or _PLACEHOLDER.search(text):
            message = f"`{path}` holds `{match[0]}`, which is not expanded: it is read as part of a name"
            helps = tuple(_instead(path, option, text))
            yield Diagnostic("R234", message, settings[path].span, (), helps, Severity.WARNING)
    for path in _FREE:
        for name, text in (settings[path].value or {}).items():
            if isinstance(text, str) and "\n" not in text and (match := _TEMPLATE.search(text)):
                message = f"`{name}` of `{path}` holds `{match[0]}`, which is not expanded: it is used unchanged"
                helps = ("write the value itself, or export it in a line of `environment.setup`",)
                yield Diagnostic("R234", message, settings[path].span, (), helps, Severity.WARNING)


def _instead(path: str, option: str, text: str) -> Iterator[str]:
    filled = _for_shell(text)
    if "{{" in text or "~" in text.partition("/")[0] or _PLACEHOLDER.search(text):
        yield "write the path itself"
        return
    yield f"write the path itself, or let your shell expand it: `{option.format(filled)}`"
    if path == "data.data_dir":
        yield f'or name the folder when the job starts: `export RAT_DATA_DIR="{filled}"`'


def _for_shell(text: str) -> str:
    """Return the text as a shell would expand it."""
    return _NAMED.sub(lambda match: f"${next(name for name in match.groups() if name)}", text)
