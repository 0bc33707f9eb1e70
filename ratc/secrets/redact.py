"""Finds likely secrets in values and texts, and stars them out: a compiler's output ends up in logs.

A secret is known by its name (:mod:`ratc.secrets.names`), by its form (:mod:`ratc.secrets.shapes`), or by its place:
behind `NAME=` or an option, or before the `@` of a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from ratc.secrets import shapes
from ratc.secrets.names import is_weak, names_secret
from ratc.yaml.write import scalar

STARS = "***"
#: A longer value is a secret as a whole: to look for others in it costs the square of its length.
_LONG = 4096
#: A name as it stands before its value; a bound keeps a long word from being looked at again and again.
_NAME = r"(?<![\w.-])(?<!\$\{)(?P<name>[A-Za-z_][\w.-]{0,120})"
_ASSIGNED = re.compile(_NAME + r"[\"']?\s{0,20}(?P<sign>[:+]=|[:=])\s{0,20}")
#: `setenv NAME VALUE` of csh, and what tools keep: `conda config --set token VALUE`.
_SET = re.compile(
    r"\b(?:setenv|config(?:\s{1,20}(?:--?[\w-]{1,40}|set|add)){0,5})\s{1,20}(?P<name>[A-Za-z_][\w.-]{0,120})(?P<sign>\s{1,20})"
)
_OPTION = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w.-]{0,60})(?P<sign>=|\s{1,20})(?!-)")
_QUOTED = r"\"(?:[^\"\\]|\\[\s\S]){0,1000}\"|'(?:[^']|''){0,1000}'"
_RUN = r"\$\{[^}]{0,200}\}|\$\([^)]{0,200}\)|`[^`]{0,200}`"
_VALUE = re.compile(rf"{_RUN}|\$?(?:{_QUOTED})|[^\s,}}\]\"';&]+")
#: The same as far as a shell may read it: `a"b"c`, `a,b`, `a\\ b`, `(a b)`.
_WORD_OF_A_SHELL = re.compile(
    rf"(?:{_RUN}|\$?(?:{_QUOTED})|\([^)\n]{{0,200}}\))?"
    r"(?:\\[\s\S]|\"[^\"\s]{0,200}\"|'[^'\s]{0,200}'|,(?=[^\s\"'\]}])|[^\s,}\]\"';&\\])*"
)
#: What a shell is told to work out, and the script itself gives.
_SPELLED = re.compile(r"\b(?:echo|printf)\s(?:\s*-\w+\s)?(?:\s*['\"]?%[\w\\]{1,8}['\"]?\s)?\s*(?![\"']?\$|\s)|<<")
#: Commands that take a secret as a word, as their manuals have it. Before each stands a word that it needs.
_COMMANDS = (
    (
        "wandb",
        rf"\bwandb\s+login\s+(?:--?[\w-]+(?:=\S+)?\s+|https?://\S+\s+)*(?P<value>{_QUOTED}|[A-Za-z0-9_-]{{16,}})",
    ),
    ("curl", rf"\bcurl\b[^|;&\n]{{0,200}}?\s(?:-u|--user)=?[ ]{{0,20}}(?P<value>{_QUOTED}|[^\s:]+:\S+)"),
    ("aws", rf"\baws\s+configure\s+set\s+\S{{0,200}}?(?:secret|token)\S{{0,200}}\s+(?P<value>{_QUOTED}|\S+)"),
    ("<<<", rf"(?i)\bread\s[^|;&<\n]{{0,80}}(?:token|pass|secret|key)\w{{0,20}}\s*<<<\s*(?P<value>{_QUOTED}|\S+)"),
    ("--password-stdin", rf"\b(?:echo|printf)\s+(?P<value>{_QUOTED}|[^\s|]+)\s*\|[^;&\n]{{0,200}}--password-stdin"),
    ("sshpass", rf"\bsshpass\s+-p\s{{0,20}}(?P<value>{_QUOTED}|\S+)"),
    (
        "login",
        rf"\b(?:docker|podman|apptainer|singularity|az|oc|helm)\s[^|;&\n]{{0,80}}?\blogin\b[^|;&\n]{{0,200}}?\s-p\s{{0,20}}(?P<value>{_QUOTED}|\S+)",
    ),
    ("mysql", rf"\bmysql\w{{0,20}}\s[^|;&\n]{{0,200}}?-p(?P<value>{_QUOTED}|[^\s-]\S*)"),
    ("authorization", r"(?i)\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)(?P<value>[^\s'\"]+)"),
    ("bearer", r"(?i)\bbearer\s+(?P<value>[A-Za-z0-9_.~+/=-]{16,})"),
    (
        "-H|header",
        r"(?i)(?<!\S)(?:-H|--(?:\w{1,10}-)?header)=?[ ]{0,20}['\"]?[\w-]{0,40}(?:key|token|secret|passw\w{0,4}|auth)"
        r"[\w-]{0,20}\s{0,4}:\s{0,4}(?P<value>[^\s'\"]+)",
    ),
    ("machine", r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(?P<value>\S+)"),
    ("login", rf"\blogin\s*\([^)\n]{{0,200}}?\b(?:key|token)\s*=\s*(?P<value>{_QUOTED})"),
    ("login", r"\blogin\s*\(\s*(?P<value>\"[^\"\s]{8,200}\"|'[^'\s]{8,200}')"),
    ("[?&](?:sig|x-amz)", r"(?i)[?&](?:sig|signature|x-amz-(?:signature|security-token))=(?P<value>[^\s&'\"]+)"),
    ("7z|rar", rf"\b(?:7z|7za|rar|unrar)\s[^|;&\n]{{0,200}}?\s-h?p(?P<value>{_QUOTED}|[^\s-]\S*)"),
    ("redis-cli", rf"\bredis-cli\s[^|;&\n]{{0,200}}?-a\s{{0,20}}(?P<value>{_QUOTED}|\S+)"),
    ("ldap", rf"\bldap\w{{3,10}}\s[^|;&\n]{{0,200}}?-w\s{{0,20}}(?P<value>{_QUOTED}|\S+)"),
    (
        "openssl",
        rf"\bopenssl\s[^|;&\n]{{0,200}}?\s(?:-k|-K|-pass(?:in|out)?)\s{{1,20}}(?:pass:)?(?P<value>{_QUOTED}|\S+)",
    ),
    ("ftp", rf"\bl?ftp\s[^|;&\n]{{0,200}}?(?:-u|--user)=?[ ]{{0,20}}[^\s,:]+[,:](?P<value>{_QUOTED}|\S+)"),
    ("htpasswd", rf"\bhtpasswd\s[^|;&\n]{{0,80}}-\w{{0,3}}b\w{{0,3}}\s\S+\s\S+\s(?P<value>{_QUOTED}|\S+)"),
    (
        "curl",
        rf"\bcurl\b[^|;&\n]{{0,200}}?\s(?:-b|--cookie|-E|--cert)=?[ ]{{0,20}}(?P<value>{_QUOTED}|[^\s:]+[:=]\S+)",
    ),
    ("login", rf"\b(?:comet|mlflow|neptune|clearml)\s[^|;&\n]{{0,80}}?\blogin\s{{1,20}}(?P<value>{_QUOTED}|[^\s-]\S*)"),
    ("kaggle", rf"\bkaggle\sconfig\s[^|;&\n]{{0,80}}?\s-v\s{{1,20}}(?P<value>{_QUOTED}|\S+)"),
    ("send", r"\bsend(?:_user)?\s(?:--\s)?(?P<value>\"(?=[^\"\n]{0,200}\\[rn])[^\"\n]{0,200}\")"),
    ("sqlplus", r"\bsqlplus\s[^|;&\n]{0,80}?[\w.]+/(?P<value>[^\s@]+)@"),
    ("/p(?:ass(?:word)?)?:", rf"(?<!\S)/p(?:ass(?:word)?)?:(?P<value>{_QUOTED}|\S+)"),
    ("pwd=", r"(?i)\buid=[^;\s]{1,80};\s?pwd=(?P<value>[^;\s'\"]+)"),
    (r"smbclient|mount\.cifs", r"\b(?:smbclient|mount\.cifs)\s[^|;&\n]{0,200}?-U\s?[^\s%]+%(?P<value>\S+)"),
)
_ANY_COMMAND = re.compile("|".join(word for word, _ in _COMMANDS), re.I)
_WORD = re.compile(r"[^\s'\"`]+")
_CONTINUED = re.compile(r"\\\r?\n")
_UNFINISHED = re.compile(r"(?<![\w.-])(?:--?(?P<option>[\w.-]{1,60})(?:=|\s)|(?P<name>\w{1,120})[+:]?=)\s{0,20}\\\Z")
#: What stands for a secret and is none: stars, a variable of the shell, a place to fill in, a word of a vocabulary.
_STAND_IN = re.compile(
    r"\**|\$[A-Z_][A-Z0-9_]*|\$\{[A-Za-z_]\w*(?::?\?[^}]*|:?-)?\}|\$\(.*|`.*|<[^<>]*>|\[[^\[\]]*\]|\{\{.*\}\}|\$\{\{.*\}\}|"
    r"x{3,}|\.{3}|…|true|false|null|none|yes|no",
    re.I | re.S,
)


def has_secret(text: str) -> bool:
    """Whether a secret stands somewhere in a text."""
    return next(_spans(text), None) is not None


def found(name: str, value: Any, strict: bool = False) -> Iterator[str]:
    """Yield the dotted paths of likely secrets in a value, lists and mappings included; ``name`` is its own path.

    With ``strict`` a name alone is enough, as for variables of an environment. Elsewhere an argument called `token` has
    to look like one too.
    """
    yield from dict.fromkeys(_found(name, name.rpartition(".")[2], value, strict))


def _found(path: str, name: str, value: Any, strict: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if has_secret(str(key)):
                yield path
            inherits = names_secret(name) and not is_weak(name) and isinstance(item, (dict, list))
            yield from _found(f"{path}.{key}", name if inherits else str(key), item, strict)
    elif isinstance(value, (list, tuple)):
        former = ""
        for index, item in enumerate(value):
            yield from _found(f"{path}[{index}]", option_of(former) or name, item, strict)
            former = item if isinstance(item, str) else ""
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool) and _is_secret(name, value, strict):
        yield path


def option_of(word: str) -> str:
    """Return the name of an option such as `--token`, if the next word of the command is its secret value; else "".

    The same for a line that ends in `MY_TOKEN=\\`, whose value begins the next one.
    """
    name = word.lstrip("-")
    if name == word:
        unfinished = _UNFINISHED.search(word[-200:])
        name = (unfinished["option"] or unfinished["name"]) if unfinished else ""
    elif "=" in name and not name.endswith("=\\"):
        return ""  # its value is in the word itself
    return name if names_secret(name) else ""


def _is_secret(name: str, value: str | int | float, strict: bool) -> bool:
    text = str(value)
    if has_secret(text):
        return True
    if not names_secret(name) or _is_placeholder(text):
        return False
    return strict or not is_weak(name) or (isinstance(value, str) and _is_random(value))


def _is_random(text: str) -> bool:
    """Whether a text is more than a word of small letters."""
    return len(text) > 3 and not re.fullmatch(r"[a-z_ -]+|[A-Z_]+|[A-Z][a-z]+|[\d.]+", text)


def _is_placeholder(text: str) -> bool:
    text = text.strip().strip("\"'")
    return _STAND_IN.fullmatch(text) is not None and not (text[:1] in "$`" and _SPELLED.search(text))


def redact(text: str) -> str:
    """Return the text with likely secrets starred out, column for column."""
    return starred(text, _spans(text, printed=True))


def starred(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with stars in some places; ends of lines stay."""
    done, parts = 0, []
    for start, end in sorted(spans):
        if end > done:
            start = max(start, done)
            parts += [text[done:start], re.sub(r"[^\n]", "*", text[start:end])]
            done = end
    return "".join([*parts, text[done:]]) if parts else text


def plain(name: str, value: Any) -> Any:
    """A value for people or machines to read, every secret in it starred out; ``name`` is its key or its path."""
    key = name.rpartition(".")[2]
    if isinstance(value, dict):
        return {redact(str(inner)): plain(str(inner), item) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        formers = ["", *value]
        return [plain(option_of(str(former)) or name, item) for former, item in zip(formers, value, strict=False)]
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        if names_secret(key) and not _is_placeholder(str(value)):
            return STARS
        return redact(value) if isinstance(value, str) else value
    return value


def shown(path: str, value: Any) -> str:
    """A value on one line, as YAML has it, every secret in it starred out."""
    told = plain(path, value)
    return STARS if told == STARS else scalar(told)


def _spans(text: str, printed: bool = False) -> Iterator[tuple[int, int]]:
    """Yield the character ranges of secrets in a text. If it is only ``printed``, starring out too much is harmless."""
    for reading in readings(text):
        yield from _in_lines(reading, printed)


def readings(text: str) -> Iterator[str]:
    """Yield a text, and, if a shell would read some of its lines as one, the text with spaces between those."""
    yield text
    if _CONTINUED.search(text):
        yield _CONTINUED.sub(lambda end: " " * len(end[0]), text)


def _in_lines(text: str, printed: bool) -> Iterator[tuple[int, int]]:
    yield from shapes.spans(text)
    if "://" in text:
        yield from _in_urls(text)
    if _ANY_COMMAND.search(text):
        for command in _commands():
            for match in command.finditer(text):
                if not _is_placeholder(match["value"]):
                    yield match.span("value")
    for pattern in (_ASSIGNED, _OPTION, _SET):
        position = 0
        while name := pattern.search(text, position):
            position = name.end()
            if names_secret(name["name"]):
                value = (_VALUE if ":" in name["sign"] else _WORD_OF_A_SHELL).match(text, position)
                if value and (is_long := len(value[0]) > _LONG):
                    position = value.end()
                if value and (is_long or _is_assigned(name["name"], name["sign"], value[0], printed)):
                    yield value.span()


@cache
def _commands() -> tuple[re.Pattern[str], ...]:
    """The patterns of commands, which take longer to compile than most texts to be searched."""
    return tuple(re.compile(pattern) for _, pattern in _COMMANDS)


def _is_assigned(name: str, sign: str, value: str, printed: bool) -> bool:
    if _is_placeholder(value):
        return False
    if printed:
        return True
    if ":" in sign and not value.startswith(("'", '"')):  # prose has colons too
        return False
    return not is_weak(name) or name.isupper() or _is_random(value.strip("'\""))


def _in_urls(text: str) -> Iterator[tuple[int, int]]:
    """Passwords before the `@` of a URL, and long user names that are tokens."""
    for word in _WORD.finditer(text):
        start = word.start()
        for number, part in enumerate(word[0].split("://")):
            before, at, _ = part.rpartition("@")
            if number and at:
                user, colon, password = before.partition(":")
                if colon and not _is_placeholder(password) and not _is_of_a_path(user, password):
                    yield start + len(user) + 1, start + len(before)
                elif not colon and re.fullmatch(r"(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,256}", user):
                    yield start, start + len(user)
            start += len(part) + len("://")


def _is_of_a_path(user: str, password: str) -> bool:
    """Whether an @ stands in the path of a URL without credentials: `host:5000/image@sha256:…`."""
    return bool(re.match(r"\d{1,5}/", password)) or (bool(re.search(r"[/?#]", user + password)) and "." in user)
