"""The plot of `ratc fit --plot`, and the memory breakdown of a micro-batch in `ratc explain`."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

from ratc.cli import main
from ratc.fitting import breakdown
from ratc.memory.compose import ALL_KINDS, compose
from ratc.memory.estimate import Breakdown, Predictor
from ratc.memory.trace import parse
from ratc.memory.zero import Strategy
from ratc.render.timeline import GROUPS, Drawing, grid, layers, phase_spans
from ratc.render.timeline import svg as drawn
from tests.helpers import made_traces
from tests.places import ROOT
from tests.unit.ratc.cli.test_fit import MIB, answers, runtime, spec  # noqa: F401  # the fixture is used by its name

SPACE = "{http://www.w3.org/2000/svg}"
GIB = 1 << 30


def drawing(cap: int = 8 * GIB, reserved: int = 5 * GIB) -> Drawing:
    points = [(GIB, 0, 0), (GIB, 3 * GIB, 0), (GIB, 2 * GIB, GIB), (GIB, 0, 0)]
    marks = [(0.0, "input"), (0.01, "forward"), (0.4, "loss"), (0.5, "backward"), (0.9, "clip"), (0.92, "optimizer")]
    return Drawing("title & <tags>", "note", ("parameter", "activation", "gradient"), points, marks, cap, reserved)


def words(text: str) -> str:
    root = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    return " ".join(element.text or "" for element in root.iter(f"{SPACE}text"))


def test_every_kind_of_memory_belongs_to_a_layer():
    assert {kind for _, _, kinds in GROUPS for kind in kinds} == set(ALL_KINDS)
    trace = parse(made_traces.layers())
    program = compose(trace, Predictor(trace).layout)
    names = [phase for _, phase in program.marks]
    assert names == ["input", "forward", "backward", "optimizer"]
    assert program.start <= program.marks[0][0] < program.marks[-1][0] < len(program.ops)


def test_the_phases_of_a_step_have_no_gaps():
    found = phase_spans(drawing())
    assert [name for _, _, name in found] == ["forward", "backward", "update"]
    assert found[0][0] == 0
    assert found[-1][1] == 1
    assert all(one[1] == two[0] for one, two in pairwise(found))


def test_layers_add_up_to_the_live_memory():
    told = layers(drawing())
    assert [layer.label for layer in told] == ["parameters", "gradients", "activations"], (
        "what holds nothing is left out"
    )
    assert [sum(sizes) for sizes in zip(*(layer.sizes for layer in told), strict=True)] == [
        sum(point) for point in drawing().points
    ]
    assert drawing().peak_bytes == 4 * GIB
    assert drawing().peak == 1


@pytest.mark.parametrize(
    ("cap", "said"), [(8 * GIB, "margin taken off: 8.00 GiB"), (300 * GIB, "300.0 GiB, far above")]
)
def test_cap_is_drawn_to_scale_or_given_as_text(cap, said):
    text = drawn.svg(drawing(cap))
    assert said in words(text)
    step, top = grid(drawing(cap))
    assert top >= max(5 * GIB, cap if cap < 100 * GIB else 0)
    assert top <= 9 * step
    heights = [
        float(pair.split(",")[1])
        for area in ET.fromstring(text).findall(f"{SPACE}polygon")
        for pair in area.get("points").split()
    ]
    assert min(heights) == pytest.approx(drawn.TOP + drawn.HEIGHT * (1 - 4 * GIB / top), abs=0.1)
    assert max(heights) == pytest.approx(drawn.TOP + drawn.HEIGHT, abs=0.1)


@pytest.mark.parametrize("cap", [int(5.01 * GIB), 300 * GIB])
def test_labels_of_both_lines_are_on_opposite_sides(cap):
    """Of a card that is used to the full both lines are in one place."""
    sides = {
        element.get("text-anchor", "start")
        for element in ET.fromstring(drawn.svg(drawing(cap))).iter(f"{SPACE}text")
        if any(name in (element.text or "") for name in ("reserved by the allocator", "cap of the card"))
    }
    assert sides == {"start", "end"}


def test_plot_is_well_formed_and_loads_nothing(runtime, tmp_path, capsys):  # noqa: F811
    runtime(answers(activation=400 * MIB))
    for name in ("out.svg", "out.html"):
        assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / name)]) == 0
        text = (tmp_path / name).read_text()
        said = words(text)
        for part in ("activations", "parameters", "cap of the card", "reserved by the allocator", "[GiB]", "backward"):
            assert part in said
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    capsys.readouterr()


def test_png_shows_the_same_drawing(runtime, tmp_path, capsys):  # noqa: F811
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    runtime(answers(activation=400 * MIB))
    assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / "out.png")]) == 0
    with image.open(tmp_path / "out.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1500, 750))
        shown = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    colours = {label: tuple(bytes.fromhex(colour[1:])) for label, colour, _ in GROUPS}
    assert colours["activations"] in shown
    assert colours["temporaries"] in shown
    capsys.readouterr()


def test_missing_matplotlib_is_reported_before_tracing(runtime, tmp_path, monkeypatch, capsys):  # noqa: F811
    calls = runtime(answers())
    monkeypatch.setattr("ratc.cli.fit.find_spec", lambda name: None)
    assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / "out.png")]) == 2
    said = capsys.readouterr().err
    assert "matplotlib is not installed" in said
    assert "ratc[runtime]" in said
    assert not calls.exists()


def test_dry_run_writes_no_plot(runtime, tmp_path, capsys):  # noqa: F811
    runtime(answers())
    assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / "out.svg"), "--dry-run"]) == 0
    assert f"would write: {tmp_path / 'out.svg'}\n" in capsys.readouterr().err
    assert not (tmp_path / "out.svg").exists()


def test_fit_and_explain_do_not_import_matplotlib():
    code = "import sys, ratc.cli.fit, ratc.cli.explain; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_explain_shows_the_memory_breakdown_of_the_micro_batch(runtime, tmp_path, capsys):  # noqa: F811
    runtime(answers(activation=400 * MIB))
    for asked in ("training.batch_size", "training.micro_batch_size"):
        assert main(["explain", spec(tmp_path), asked]) == 0
        out = capsys.readouterr().out
        micro = int(re.search(r"training\.micro_batch_size = (\d+)", out)[1])
        assert f"micro-batch {micro}, predicted:" in out
        for part in (
            "parameters: layers.0",
            "gradients",
            "optimizer state",
            "activations: layers.",
            "context",
            "margin",
        ):
            assert part in out
        assert f"Micro-batch {micro} is taken: {32 // micro} of them" in out
        assert re.search(rf"The next larger divisor, {2 * micro}, does not fit: \d+\.\d+ GiB alive at once", out)
    assert main(["explain", spec(tmp_path), "training.global_batch_size"]) == 0
    assert "predicted:" not in capsys.readouterr().out


def test_memory_breakdown_of_explain_adds_up(runtime, tmp_path, capsys):  # noqa: F811
    runtime(answers(activation=400 * MIB))
    main(["explain", spec(tmp_path), "training.batch_size"])
    out = capsys.readouterr().out
    body = out[out.index("predicted:") :].splitlines()[1:]
    sizes = [re.match(r" +([\d.]+) (GiB|MiB)  (.*)", line) for line in body]
    found = [(float(line[1]) * (1 if line[2] == "GiB" else 1 / 1024), line[3]) for line in sizes if line]
    total = next(number for number, (_, text) in enumerate(found) if text.startswith("in all"))
    assert sum(size for size, _ in found[:total]) == pytest.approx(found[total][0], abs=0.1)
    assert sum(size for size, _ in found[total:]) == pytest.approx(39.6, abs=0.2), "with margin and rest it is the card"


def test_breakdown_of_a_measured_choice_has_no_parts():
    from tests.unit.ratc.memory.test_choose import FP32, LARGE, searcher

    choice = searcher(64).choose(FP32, Strategy(), LARGE)
    told = breakdown.lines(replace(choice, breakdown=Breakdown({}, {}, {})), "measured on 1 May")
    assert told[0].endswith("micro-batch 64, measured on 1 May:")
    assert "whose kinds were not measured" in told[1]
    assert not any("activations" in line or "bound:" in line for line in told)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("num_gpus: 1, gpu: a100-40", "num_gpus: 0"), "No memory is predicted: it trains on the CPU."),
    ],
)
def test_explain_without_a_prediction_gives_the_reason_in_one_line(runtime, tmp_path, capsys, change, said):  # noqa: F811
    from tests.unit.ratc.cli.test_fit import SPEC

    calls = runtime(answers())
    assert main(["explain", spec(tmp_path, SPEC.replace(*change)), "training.batch_size"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(said)
    assert not calls.exists()
