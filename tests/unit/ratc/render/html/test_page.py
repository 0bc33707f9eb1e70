"""The page as text: well-formed, self-contained, reproducible, and with all markup of inputs escaped."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from xml.etree.ElementTree import Element

import html5lib
import pytest

from ratc.comparison.compare import compare
from ratc.comparison.model import Side
from ratc.plan import Plan, Value, Values
from ratc.render.html import code, memory, values
from ratc.render.html.page import diff_page, prose, spec_page, tiles
from tests.helpers import pages
from tests.helpers.pages import HOSTILE, ratc
from tests.places import CHANGES

CPU = "No memory is predicted: it trains on the CPU."


def parsed(page: str) -> Element:
    """The tree of a page; any error of its HTML is raised."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def hostile_sides() -> tuple[Side, Side]:
    def side(name: str, seed: int) -> Side:
        text = f"{HOSTILE} {seed}"
        given = {"seed": Value(seed, "spec"), f"model.args.{HOSTILE}": Value(text, "derived", text)}
        return Side(f"{name} {HOSTILE}", HOSTILE, given, given, ratc_version=text, findings=(text,))

    return side("old", 1), side("new", 2)


@pytest.fixture(params=["whole", "hostile", "cpu", "difference", "hostile difference", "no difference"])
def page(request, tmp_path) -> str:
    if "difference" in request.param:
        sides = hostile_sides()
        return diff_page(compare(sides[0], sides[0] if request.param.startswith("no") else sides[1]))
    if request.param == "cpu":
        (tmp_path / "spec.yaml").write_text(pages.SPEC)
        status, out, err = ratc("report", "spec.yaml", "-o", "-", folder=tmp_path)
        assert status == 0, err
        return out
    return spec_page(getattr(pages, request.param)(tmp_path))


def test_page_is_well_formed_and_its_ids_are_unique(page):
    tree = parsed(page)
    ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    targets = [element.attrib["href"] for element in tree.iter("a")]
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    named = [
        element.attrib[key] for element in tree.iter() for key in ("aria-labelledby", "for") if key in element.attrib
    ]
    assert set(named) <= set(ids)


def test_page_loads_and_sends_nothing(page):
    tree = parsed(page)
    loading = {"src", "srcset", "data", "action", "formaction", "poster", "background", "xlink:href", "ping"}
    for element in tree.iter():
        assert not loading & set(element.attrib), element.attrib
        assert not [name for name in element.attrib if name.startswith("on") or name == "style"]
        assert element.tag not in {"link", "base", "iframe", "object", "embed", "img", "form"}
    for sheet in (*tree.iter("style"), *tree.iter("script")):
        assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttp|eval\(", words(sheet))


def test_content_policy_allows_only_the_embedded_style_and_script(page):
    tree = parsed(page)
    (policy,) = (item.attrib["content"] for item in tree.iter("meta") if "http-equiv" in item.attrib)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (element,) = tree.iter(tag)
        digest = base64.b64encode(hashlib.sha256((element.text or "").encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_markup_in_a_spec_is_escaped(tmp_path):
    for page in (spec_page(pages.hostile(tmp_path)), diff_page(compare(*hostile_sides()))):
        tree = parsed(page)
        assert not list(tree.iter("img"))
        assert len(list(tree.iter("script"))) == 1
        assert not any("onload" in element.attrib for element in tree.iter())
        body = tree.find("body")
        assert words(body).count("<svg onload=alert(1)>&amp;{{ 7 * 7 }}") > 8
        assert "49" not in words(body)


def test_same_input_gives_the_same_page(tmp_path):
    assert spec_page(pages.whole(tmp_path)) == spec_page(pages.whole(tmp_path))
    assert diff_page(compare(*hostile_sides())) == diff_page(compare(*hostile_sides()))


def test_secrets_are_redacted(tmp_path):
    secret = "hf_abcdefghijklmnopqrstuvwx"
    report = pages.whole(tmp_path)
    plan = pages.plan(tmp_path)
    told = {**plan.values, "description": replace(plan.values["description"], value=f"with {secret}")}
    plan = replace(plan, values=Values(told))  # as a lock may have it: a spec with a secret is refused
    page = spec_page(
        replace(report, plan=plan, files=(("run.sh", f"export T={secret} # {secret}\n"),), remarks=(secret,))
    )
    assert secret not in page
    assert page.count("*" * len(secret)) >= 4


def test_page_lists_every_value_of_the_plan_once(tmp_path):
    plan = pages.plan(tmp_path)
    sections = values.sections(plan)
    rows = [row for section in sections for row in section.rows]
    assert sorted(row.head + row.name for row in rows) == sorted(plan.values)
    assert len({row.anchor for row in rows}) == len(plan.values)
    steps = next(row for row in rows if row.name == "gradient_accumulation_steps")
    assert steps.why == "8 / (4 x 1)"
    assert [step.path for step in steps.steps][:2] == ["training.global_batch_size", "training.micro_batch_size"]
    assert all(step.anchor for step in steps.steps[:2])
    page = parsed(spec_page(pages.whole(tmp_path)))
    assert {row.anchor for row in rows} <= {element.attrib.get("id") for element in page.iter()}


def test_anchors_of_different_paths_differ():
    paths = ["a.b", "a_b", "a b", "a_2e_b", "a/b", "a-b", "ä"]
    assert len({values.anchor(path) for path in paths}) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z][\w.-]*", values.anchor(path)) for path in paths)


def test_tiles_show_batch_hardware_and_peak_memory(tmp_path):
    report = pages.whole(tmp_path)
    told = {tile.label: (tile.value, tile.detail) for tile in tiles(report)}
    assert told["Global batch"][0] == "8"
    assert told["Hardware"] == ("CPU", "1 process on 1 node")
    assert told["Peak memory"] == ("26.0 GiB", "of 80.0 GiB on a100-80, predicted")
    unknown = {tile.label: tile.value for tile in tiles(replace(report, card_memory=None))}
    assert unknown["Peak memory"] == "not predicted"


def test_tiles_show_every_node_count_of_an_elastic_plan(tmp_path):
    report = pages.whole(tmp_path)

    def on(nodes: int) -> Plan:
        values = {"parallel.nodes": Value(nodes, "spec"), "parallel.world_size": Value(nodes, "derived")}
        return replace(report.plan, values=Values({**report.plan.values, **values}))

    elastic = replace(on(8), sizes=(on(2), on(4), on(8)))
    told = {tile.label: (tile.value, tile.detail) for tile in tiles(replace(report, plan=elastic))}
    assert told["Hardware"] == ("CPU", "at most 8 processes on 2, 4 or 8 nodes")
    assert told["Global batch"][1].startswith("on 8 nodes: micro-batch ")
    assert told["Peak memory"][1].startswith("on 8 nodes: of 80.0 GiB ")


def test_tile_of_the_engine_names_the_shards_of_fsdp2(tmp_path):
    report = pages.whole(tmp_path)
    values = {"fsdp2.shard_size": Value(4, "derived"), "fsdp2.offload": Value(True, "spec")}
    values["training.activation_checkpointing"] = Value(["blocks.0", "blocks.1"], "derived")
    plan = replace(report.plan, values=Values({**report.plan.values, **values}))
    told = {tile.label: (tile.value, tile.detail) for tile in tiles(replace(report, plan=plan))}
    assert told["Engine"][0] == "PyTorch, FSDP2"
    assert told["Engine"][1].endswith("; shards on 4 processes, offloaded to the host")
    assert "activation checkpointing of 2 blocks" in told["Precision"][1]


@pytest.mark.parametrize("fits", [True, False])
def test_memory_bar_is_to_scale_and_fills_its_width(fits):
    card_memory = pages.card_memory(fits)
    bar = memory.bar(card_memory)
    ends = [float(segment.x) + float(segment.width) for segment in bar.segments]
    starts = [float(segment.x) for segment in bar.segments]
    assert starts[0] == 0
    assert ends[-1] == pytest.approx(memory.WIDTH, abs=0.05)
    assert starts[1:] == pytest.approx(ends[:-1], abs=0.02)
    scale = max(card_memory.card_bytes, card_memory.used_bytes)
    assert float(bar.segments[1].width) == pytest.approx(card_memory.parts[1].bytes_ / scale * memory.WIDTH, abs=0.01)
    assert bool(bar.limit) is not fits
    assert all(segment.colour or segment.kind in ("margin", "unused") for segment in bar.segments)


def test_each_phase_shows_its_peak():
    told = [(phase.name, phase.peak, phase.is_highest) for phase in memory.phases(pages.drawing())]
    assert told == [("forward", "17.0 GiB", False), ("backward", "22.0 GiB", True), ("update", "2.00 GiB", False)]


def test_timeline_uses_only_colours_that_the_style_sheet_maps(tmp_path):
    """The style sheet turns the drawing's fixed colours into those of light and dark."""
    page = spec_page(pages.whole(tmp_path))
    style = words(next(parsed(page).iter("style")))
    drawn = page[page.index('<svg xmlns="') : page.index("<figcaption>")]
    known = set(re.findall(r'\[(?:fill|stroke)="(#\w+)"\]', style))
    assert {"#595959", "#e3e3e3", "#222222", "#000000"} <= known
    lines = set(re.findall(r'<path d="[^"]*" stroke="(#\w+)"', drawn)) | set(
        re.findall(r'<text [^>]*fill="(#\w+)"', drawn)
    )
    assert lines - {"#222222", "#000000"} <= known


def test_comments_directives_and_keys_are_highlighted():
    shell, lock, _ = (code.file(*file) for file in pages.FILES)
    kinds = [[piece.kind for piece in line] for line in shell.lines]
    assert kinds == [["comment"], ["directive"], ["comment"], ["", "comment"]]
    assert shell.lines[3][0].text == "export A='#no comment' "
    assert [piece.kind for piece in lock.lines[1]] == ["", "key", "", "comment"]
    for file, (_, text) in zip((shell, lock), pages.FILES, strict=False):
        assert "".join("".join(piece.text for piece in line) + "\n" for line in file.lines) == text


def test_paired_backticks_become_code():
    assert prose("say `a < b`, or not") == "say <code>a &lt; b</code>, or not"
    assert prose("one ` alone") == "one ` alone"


def test_step_time_has_its_own_section(tmp_path):
    page = spec_page(pages.whole(tmp_path))
    parts = [page.partition(f'<section aria-labelledby="{name}">')[2] for name in ("memory", "time")]
    memory_part, time_part = (part.partition("</section>")[0] for part in parts)
    assert "A step takes about 0.42 s" in time_part
    assert "A step takes" not in memory_part


def test_page_without_a_prediction_gives_the_reason(tmp_path):
    (tmp_path / "spec.yaml").write_text(pages.SPEC)
    assert ratc("report", "spec.yaml", folder=tmp_path)[:2] == (0, "report.html\n")
    page = (tmp_path / "report.html").read_text()
    text = words(parsed(page).find("body"))
    assert CPU in text
    assert "What `ratc compile` writes" not in text
    assert "What ratc compile writes into compiled/moles/local" in text
    assert "accelerate.yaml" in text
    assert "/tmp" not in page


def test_report_of_a_compiled_folder_marks_edited_files(tmp_path):
    (tmp_path / "spec.yaml").write_text(pages.SPEC)
    assert ratc("compile", "spec.yaml", folder=tmp_path)[0] == 0
    folder = "compiled/moles/local"
    assert ratc("report", folder, "-o", "a.html", folder=tmp_path)[0] == 0
    with (tmp_path / folder / "run.sh").open("a") as script:
        script.write("# by hand\n")
    assert ratc("report", folder, "-o", "b.html", folder=tmp_path)[0] == 0
    clean, edited = (words(parsed((tmp_path / name).read_text()).find("body")) for name in ("a.html", "b.html"))
    assert "ratc check" not in clean
    assert "run.sh in the folder is not what the inputs give now" in edited
    assert "# by hand" in edited


def test_lock_without_its_spec_still_has_a_page(tmp_path):
    (tmp_path / "spec.yaml").write_text(pages.SPEC)
    assert ratc("compile", "spec.yaml", folder=tmp_path)[0] == 0
    (tmp_path / "spec.yaml").unlink()
    status, out, _ = ratc("report", "compiled/moles/local", "-o", "-", folder=tmp_path)
    text = words(parsed(out).find("body"))
    assert status == 0
    assert "Only the lock itself can be shown: its spec spec.yaml does not exist any more." in text
    assert "8 / (4 x 1)" in text
    assert "lock.yaml" in text


def test_report_of_a_sweep_lists_its_points(tmp_path):
    (tmp_path / "spec.yaml").write_text(pages.SPEC + "sweep: {grid: {seed: [1, 2, 3]}}\n")
    status, out, err = ratc("report", "spec.yaml", "--target", "slurm", "-o", "-", folder=tmp_path)
    assert status == 0, err
    text = words(parsed(out).find("body"))
    assert "One job array with 3 points" in text
    assert "points.tsv" in text


@pytest.mark.parametrize("change", ["global-batch", "seed", "nothing-comments-and-order", "another-name"])
def test_report_of_a_difference_has_the_content_of_diff(change, tmp_path):
    folder = tmp_path / change
    shutil.copytree(CHANGES / change, folder)
    options = (folder / "args.txt").read_text().split()
    status, out, err = ratc("report", "old/spec.yaml", "new/spec.yaml", "-o", "-", *options, folder=folder)
    assert status == 0, err
    text = words(parsed(out).find("body"))
    for line in (folder / "expected.txt").read_text().splitlines():
        for value in re.findall(r"^\s*(?:└ )?([a-z_.]+): .* → ", line):
            assert value in text
    if not (folder / "expected.txt").read_text():
        assert "Nothing differs." in text


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("spec.yaml", "-o", "spec.yaml"), 2, "`spec.yaml` is not the name of a page"),
        (("spec.yaml", "spec.yaml", "--set", "seed=1"), 2, "--set needs one spec, and two sides are given"),
        (("none.yaml",), 1, "there is no file `none.yaml`"),
        (("spec.yaml", "--target", "slrum"), 1, "there is no target `slrum`"),
        (("spec.yaml", "--card", "a1000"), 1, "R301"),
        (("spec.yaml", "-o", "spec.yaml/report.html"), 1, "R403"),
        (("bad.yaml",), 1, "R1"),
    ],
)
def test_failed_report_gives_the_reason_and_writes_nothing(arguments, status, says, tmp_path):
    (tmp_path / "spec.yaml").write_text(pages.SPEC)
    (tmp_path / "bad.yaml").write_text("traning: {}\n")
    before = sorted(tmp_path.rglob("*"))
    got, out, err = ratc("report", *arguments, folder=tmp_path)
    assert (got, out) == (status, "")
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "spec.yaml").read_text() == pages.SPEC


def test_commands_in_the_note_of_the_cards_are_code(tmp_path):
    report = replace(pages.whole(tmp_path), cards_note="a margin, which `ratc explain SPEC memory.margin` explains.")
    page = spec_page(report)
    assert "<code>ratc explain SPEC memory.margin</code>" in page
