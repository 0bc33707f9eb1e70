"""Edits of a list in a YAML file: everything else stays byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ratc.yaml.edit import put_items

NEW = {"name": "new", "date": "2026-11-23", "size": [2, 3], "points": [{"a": 1, "b": 2.5}, {"a": 2, "b": None}]}
WRITTEN = """- name: new
  date: '2026-11-23'
  size: [2, 3]
  points:
    - {a: 1, b: 2.5}
    - {a: 2, b: null}
"""


def indented(dash: str) -> str:
    return "".join(dash + line for line in WRITTEN.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "list:\n" + indented("  ")),
        ("a: 1", "a: 1\nlist:\n" + indented("  ")),
        ("list: []\nb: 1\n", "list:\n" + indented("  ") + "b: 1\n"),
        ("list: null\n\n# of b\nb: 1\n", "list:\n" + indented("  ") + "\n# of b\nb: 1\n"),
        ("list: [{name: 'y'}]\n", "list:\n  - {name: 'y'}\n" + indented("  ")),
        ("list:  # all\n- name: y  # one\nb: 1", "list:  # all\n- name: y  # one\n" + WRITTEN + "b: 1"),
        ("list:\n    -   name: y\n", "list:\n    -   name: y\n" + indented("    ")),
        ("list:\n  -\n    q: |\n      # text\n", "list:\n  -\n    q: |\n      # text\n" + indented("  ")),
        ("list:\r\n  - name: y\r\n", ("list:\n  - name: y\n" + indented("  ")).replace("\n", "\r\n")),
    ],
)
def test_new_item_has_the_style_of_the_list(before, after):
    assert put_items(before, "list", [NEW]) == after


def test_removed_item_removes_only_its_own_lines():
    before = "list:\n  # of y\n  - name: y\n  -\n    name: z\n    q: 1  # keep\n  - name: w\n"
    assert (
        put_items(before, "list", [], without=[0])
        == "list:\n  # of y\n  -\n    name: z\n    q: 1  # keep\n  - name: w\n"
    )
    assert put_items(before, "list", [], without=[1]) == "list:\n  # of y\n  - name: y\n  - name: w\n"


@pytest.mark.parametrize("text", ['{"list": []}', "[1, 2]", "word", "a: [", "a: 1\na: 2\n"])
def test_text_without_a_block_list_raises_a_value_error(text):
    with pytest.raises(ValueError, match=r"block style|expected|duplicate"):
        put_items(text, "list", [NEW])


KEYS = st.dictionaries(st.sampled_from("abcdef"), st.integers(), max_size=4)
COMMENT = st.sampled_from(["", "# of ours\n", "\n", "\n# \u00fc\n"])


@given(KEYS, KEYS, COMMENT, st.lists(st.integers(0, 9), max_size=4), st.integers(0, 6), st.sets(st.integers(0, 3)))
def test_edit_keeps_all_other_lines_and_gives_the_requested_list(first, last, comment, items, dash, without):
    last = {f"z{key}": value for key, value in last.items()}
    without = {at for at in without if at < len(items)}
    head = "".join(f"{key}:   {value}  # {key}\n" for key, value in first.items())
    tail = "".join(f"{comment}{key}:   {value}\n" for key, value in last.items())
    block = "list:\n" + "".join(f"{' ' * dash}- n:  {item}  # {item}\n" for item in items)
    text = put_items(head + block + tail, "list", [{"n": 10}], without)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert YAML(typ="safe").load(text) == {
        **first,
        "list": [*({"n": item} for at, item in enumerate(items) if at not in without), {"n": 10}],
        **last,
    }
    kept = [f"n:  {item}  # {item}" for at, item in enumerate(items) if at not in without]
    assert all(line in text for line in kept)
