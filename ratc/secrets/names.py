"""Recognises the names of variables, keys and options that belong to a secret: `PGPASSWORD`, `MY_TOKEN2`, `api_key`.

A name is read word by word, so that `TOKENIZERS_PARALLELISM`, `monkey` and `bypass` are none. Deep learning has tokens
of its own (`cls_token`, `token_dim`). A name that ends in `_FILE` or `_PATH` is of a secret's path, not of the secret.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Words that name a secret wherever they stand in a name, and those that other names run together with.
_STRONG = re.compile(
    r"\w*(?:passwords?|passwd|passphrase|api_?keys?|secretkey|privatekey|authtoken|accesstoken|storepass|keypass)|\w*secret|passwort|passcode"
    r"|creds?|credentials?|authorization|pswd|kennwort|authkey|accesskey|bearer|jwt|cookies?"
)
#: Words that name a secret together with `key`: `SIGNING_KEY`.
_KEYS = re.compile(
    r"api|access|private|secret|auth|account|storage|signing|encryption|master|licen[sc]e|deploy|ssh|service|shared"
    r"|subscription|app|client|wandb|kaggle|openai|anthropic|comet|neptune|hf|huggingface|gemini|mistral|groq|cohere"
    r"|replicate|openrouter|aws|azure|gcp|google|stripe|sendgrid|datadog|dd"
)
#: Words that have another meaning elsewhere; see :func:`is_weak`. Some of them count only at the end of a name.
_WEAK = re.compile(
    r"token|pat|(?:ssh|db|my|pg|ftp|smtp|mysql|user|root|admin|git|ldap|redis|mongo|api|hf|gh)(?:pass|pwd|token|pat)"
)
_WEAK_AT_THE_END = re.compile(r"pass|auth|sas|dsn|pw|pwd")
#: What stands before `token` in the name of a tensor or of a vocabulary's entry, and before a harmless `pass`.
_TENSORS = re.compile(
    r"cls|class|pad|mask|bos|eos|sep|unk|start|end|special|ima?ge?|text|dist|distill(?:ation)?|reg(?:ister)?|patch|query"
    r"|memory|prompt|leading|learnable|pool|pos|position|in|out|input|output|global|local|first|last|next|prev|per|num|n"
    r"|max|min|return|add|with|no|drop|keep|prefix|suffix|separator|audio|video|visual|vision|word|sub|context|ctx|task"
    r"|empty|blank|begin|stop|extra|mean"
)
_PASSES = re.compile(r"low|high|band|all|two|multi|single|one|first|second|forward|backward|by|n|num")
#: What follows in a name that says something about a secret or about a token.
_ABOUT = re.compile(
    r"files?|path|dir|folder|limit|count|len(?:gth)?|ttl|types?|name|ur[li]|endpoint|expir\w+|dims?|sizes?|mix\w*|merg\w+"
    r"|pool\w*|embed\w*|ids|masks?|drop(?:out)?|mode|per|level|wise|norm|format|prefix|suffix|budget|rate|index|attn"
    r"|attention|heads?|num|helper|timeout|ratio"
)


@lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Whether a name is likely to belong to a secret."""
    return _kind(name) is not None


@lru_cache(maxsize=4096)
def is_weak(name: str) -> bool:
    """Whether the name alone is too little outside of an environment: an argument `token` or `pass` may be anything."""
    return _kind(name) == "weak"


def _kind(name: str) -> str | None:
    words = _words(name)
    for index, word in enumerate(words):
        after, before = words[index + 1 :], words[index - 1] if index else ""
        if any(_ABOUT.fullmatch(other) for other in after):
            continue
        if _STRONG.fullmatch(word) or (word in ("key", "keys") and _KEYS.fullmatch(before)):
            return "strong"
        if word == "auth" and after == ["header"]:
            return "strong"
        if word == "pwd" and before in ("", "old"):  # the shell's working folders
            continue
        if (word == "token" and _TENSORS.fullmatch(before)) or (word == "pass" and _PASSES.fullmatch(before)):
            continue
        if _WEAK.fullmatch(word) or (_WEAK_AT_THE_END.fullmatch(word) and not after):
            return "weak"
    return None


def _words(name: str) -> list[str]:
    """The words of a name in snake, kebab, dotted or camel case, in lower case and without digits at their ends."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name[:200])
    return [bare for word in re.split(r"[^A-Za-z0-9]+", parted.lower()) if (bare := word.rstrip("0123456789"))]
