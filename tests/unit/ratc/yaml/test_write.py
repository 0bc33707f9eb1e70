"""YAML that ratc writes: it reads back unchanged, and comments do not change the values."""

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratc.yaml.parse import parse
from ratc.yaml.write import mapping
from tests.effort import examples
from tests.helpers.made_specs import exactly

plain = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TRICKY = [
    *"-?~=|>{}[]'\"\\ yN", "", " a", "a ", "#x", "a #x", "a: b", "a:", ":a", "a:b", "a,b", "a b,c", "a, b", "- a", "<<",
    "...", "*a", "&a", "!a", "%a", "@a", "1e5", "1.5e5", "0x1", "0o7", "0b1", "1_000", ".5", "5.", "+1", "-1", ".inf",
    ".nan", "inf", "nan", "2001-01-01", "12:30:00", "190:20:30", "yes", "No", "ON", "null", "Null", "true", "---",
    "a\nb", "a\r\nb", "\t", "\x07", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\ufeff", "\ufffe", "\U0001f9e0", "é",
    "e\u0301", "a\\b", "C:\\x", "$(x)", "/a/b", "a/b:c", "x (y)", "a+b", "..", "./a", "a.b",
]  # fmt: skip
texts = st.text(plain, max_size=30) | st.sampled_from(TRICKY) | st.text("ab1: ,-#.()", max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e16, 1e-7, -0.0, 1e22, 5e-324, 1.7976931348623157e308, 0.1, 100.0, 1e5]),
    texts,
)
trees = st.dictionaries(
    texts,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=examples(1000))
@given(trees)
@example({text: text for text in TRICKY})
@example({"list": TRICKY, "map": {text: [text] for text in TRICKY}})
def test_written_yaml_reads_back_unchanged(tree):
    text = mapping(tree)
    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        assert exactly(yaml.load(text, Loader=loader)) == exactly(tree)
    document, found = parse("x.yaml", text.encode())
    assert document, found
    assert exactly(document.root.data()) == exactly(tree)


@settings(max_examples=examples(300))
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, min_size=1), texts)
def test_comments_do_not_change_the_values(tree, comment):
    text = mapping(tree, dict.fromkeys(tree, comment))
    assert len(text.splitlines()) == len(tree) or "\n" not in text.strip("\n")
    assert exactly(yaml.safe_load(text)) == exactly(tree)
