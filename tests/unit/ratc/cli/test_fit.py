"""`ratc fit` and the tracing behind it, with a stand-in for the runtime: its output, the trace cache, and failures."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from ratc import cache_folder
from ratc.cli import main
from ratc.diagnostics import Source, Span
from ratc.memory.trace import Trace
from ratc.render import fit as render
from ratc.tracing import child_process, fetch
from tests.helpers import made_traces

MIB = made_traces.MIB
REQUEST = {
    "model": {"name": "rat", "args": {}},
    "training": {"precision": "bf16", "activation_checkpointing": False, "loss": {"name": "combined", "args": {}}},
    "data": {"image_size": [8, 8]},
    "accumulation": 1,
    "compute_capability": "8.0",
}
HEAD = "import json, os, sys, time\nrequest = json.load(sys.stdin)\n"
SPEC = """experiment_name: demo
training: {target_batch_size: 32}
data: {data_dir: data, image_size: 128}
resources: {num_gpus: 1, gpu: a100-40, cpus: 8}
"""


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Put a script in the runtime's place; what it writes in `calls` says how often it ran."""
    package = tmp_path / "fake" / "ratc_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("RATC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "runtime_folder", lambda: str(package))

    def install(body: str) -> Path:
        calls = tmp_path / "calls"
        (package / "trace.py").write_text(f"{HEAD}open({str(calls)!r}, 'a').write('x')\n{body}")
        return calls

    return install


def answers(**what) -> str:
    """A script that writes a made trace, of the kind of step that was asked for."""
    single = json.dumps(json.dumps(made_traces.layers(**what)))
    several = json.dumps(json.dumps(made_traces.layers(**what, accumulating=True)))
    return f"open(sys.argv[1], 'w').write({single} if request['accumulation'] == 1 else {several})\n"


def spec(folder: Path, text: str = SPEC) -> str:
    (folder / "spec.yaml").write_text(text)
    return str(folder / "spec.yaml")


def test_progress_of_a_custom_task_shows_no_image_size(runtime, tmp_path):
    runtime(answers())
    said = []
    fetch.fetch({**REQUEST, "task_type": "custom"}, str(tmp_path), progress=said.append)
    assert said == ["tracing rat: bf16, kernels of compute capability 8.0"]


def test_trace_is_made_once_and_then_read_from_the_cache(runtime, tmp_path):
    calls = runtime(answers())
    said = []
    for _ in range(3):
        trace, found = fetch.fetch(REQUEST, str(tmp_path), progress=said.append)
        assert isinstance(trace, Trace)
        assert not found
    assert calls.read_text() == "x"
    assert said == ["tracing rat: 8 x 8, bf16, kernels of compute capability 8.0"]
    assert len(list(Path(cache_folder.folder("traces")).iterdir())) == 1, "nothing else is left there"


def test_changed_request_runtime_code_or_model_code_is_traced_again(runtime, tmp_path):
    calls = runtime(answers())
    fetch.fetch(REQUEST, str(tmp_path))
    fetch.fetch({**REQUEST, "accumulation": 2}, str(tmp_path))
    assert calls.read_text() == "xx"
    runtime(answers() + "# changed\n")
    fetch.fetch(REQUEST, str(tmp_path))
    assert calls.read_text() == "xxx"
    own = {**REQUEST, "model": {"name": "mine.net:Net", "args": {}}}
    (tmp_path / "mine").mkdir()
    for text, expected in (("one = 1", "xxxx"), ("one = 1", "xxxx"), ("one = 2", "xxxxx")):
        (tmp_path / "mine" / "net.py").write_text(text)
        fetch.fetch(own, str(tmp_path))
        assert calls.read_text() == expected


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b"[" * 100_000, b'{"trace_version": 1}'])
def test_corrupt_cache_entry_is_traced_again(runtime, tmp_path, damage):
    calls = runtime(answers())
    fetch.fetch(REQUEST, str(tmp_path))
    (entry,) = Path(cache_folder.folder("traces")).iterdir()
    entry.write_bytes(damage)
    trace, found = fetch.fetch(REQUEST, str(tmp_path))
    assert isinstance(trace, Trace)
    assert not found
    assert calls.read_text() == "xx"


def test_tracing_error_points_at_the_key_that_caused_it(runtime, tmp_path):
    told = "print(json.dumps({'code': 'R316', 'message': 'no', 'key': '%s'}), file=sys.stderr); sys.exit(1)"
    places = {name: Span(Source("spec.yaml", name), 1, 1, 1, 2) for name in ("model.name", "training.loss")}
    for key, place in (("training.loss", "training.loss"), ("", "model.name"), ("training.frozen", "model.name")):
        runtime(told % key)
        _, found = fetch.fetch(REQUEST, str(tmp_path), places.get)
        assert found[0].span == places[place]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("sys.exit(3)", "R315", "ended with status 3"),
        ("os.abort()", "R315", "ended with signal SIGABRT"),
        ("print('noise'); 1 / 0", "R315", "ended with status 1"),
        ("open(sys.argv[1], 'w').write('nonsense')", "R315", "that ratc cannot read: JSONDecodeError"),
        ("pass", "R315", "that ratc cannot read"),
        ("x = bytearray(1 << 45)", "R315", "ended with status 1"),
        (
            "print(json.dumps({'code': 'R316', 'message': 'no', 'where': 'net.py:3'}), file=sys.stderr); sys.exit(1)",
            "R316",
            "no",
        ),
        ("print(json.dumps({'code': 'R999', 'message': 'no'}), file=sys.stderr); sys.exit(1)", "R315", "no"),
    ],
)
def test_failed_trace_gives_one_diagnostic_and_no_cache_entry(runtime, tmp_path, body, code, said):
    runtime(body)
    trace, found = fetch.fetch(REQUEST, str(tmp_path))
    assert trace is None
    assert len(found) == 1
    assert found[0].code == code
    assert said in found[0].message
    assert not list(Path(cache_folder.folder("traces")).glob("*"))


def test_hanging_trace_is_killed_with_its_child_processes(runtime, tmp_path):
    note = tmp_path / "child"
    runtime(
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    trace, found = fetch.fetch(REQUEST, str(tmp_path), limits=child_process.Limits(wall_s=3))
    assert trace is None
    assert "3 s" in found[0].message
    child = int(note.read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("what the model started lives on")


def test_missing_runtime_is_reported_with_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("RATC_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "runtime_folder", lambda: None)
    _, found = fetch.fetch(REQUEST, str(tmp_path))
    assert found[0].code == "R315"
    assert "ratc[runtime]" in found[0].helps[0]


def test_trace_cache_keeps_a_limited_number_of_entries(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "KEPT", 3)
    runtime(answers())
    for number in range(5):
        fetch.fetch({**REQUEST, "accumulation": number}, str(tmp_path))
    assert len(list(Path(cache_folder.folder("traces")).iterdir())) == 3


def test_fit_prints_a_line_for_each_precision(runtime, tmp_path, capsys):
    runtime(answers(activation=400 * MIB))
    assert main(["fit", spec(tmp_path)]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith("a100-40")]
    assert [row[2] for row in rows] == ["bf16", "fp32"]
    assert all(int(row[4]) * int(row[5]) == 32 for row in rows)
    assert all(float(row[6]) <= float(row[7]) < float(row[8]) < 39.6 for row in rows)
    assert "does not fit" in out
    assert "tracing rat" in err
    assert "R305" not in err


def test_fit_gives_the_same_figures_in_every_format(runtime, tmp_path, capsys):
    runtime(answers(activation=400 * MIB))
    path = spec(tmp_path)
    main(["fit", path, "--card", "h100", "--card", "t4", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["card"], row["precision"]) for row in rows] == [
        ("h100", "bf16"),
        ("h100", "fp32"),
        ("t4", "fp16"),
        ("t4", "fp32"),
    ]
    main(["fit", path, "--card", "h100", "--card", "t4", "--format", "markdown"])
    lines = capsys.readouterr().out.splitlines()
    for row, line in zip(rows, lines[2:], strict=False):
        assert f"| {row['micro_batch']} | {row['accumulation']} |" in line
        assert render.gib(row["peak_reserved_bytes"]) in line


def test_fit_has_a_line_for_each_zero_stage(runtime, tmp_path, capsys):
    runtime(answers(optimizer=False))
    path = spec(tmp_path, SPEC.replace("num_gpus: 1", "num_gpus: 4"))
    assert main(["fit", path, "--in", "bf16", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["zero_stage"] for row in rows] == [0, 1, 2, 3]
    assert {row["micro_batch"] * row["accumulation"] for row in rows} == {8}


def test_if_nothing_fits_fit_exits_with_1_and_suggests_changes(runtime, tmp_path, capsys):
    # By what is asked for: half the bytes in bf16, a quarter with checkpointing.
    full, half, quarter = (
        json.dumps(json.dumps(made_traces.layers(activation=size * 1024 * MIB))) for size in (20, 10, 5)
    )
    body = (
        "training = request['training']\n"
        f"text = {half} if training['precision'] != 'fp32' else {full}\n"
        f"text = {quarter} if training['activation_checkpointing'] else text\n"
        "open(sys.argv[1], 'w').write(text)\n"
    )
    runtime(body)
    path = spec(tmp_path, SPEC.replace("target_batch_size: 32", "target_batch_size: 1, precision: fp32"))
    assert main(["fit", path]) == 1
    out = capsys.readouterr().out
    assert "Nothing fits on a100-40: micro-batch 1 needs" in out
    assert re.search(r"\d GiB  layers\.3", out)
    # 40 GiB of activations in bf16 do not fit either, so that is not proposed.
    assert "would fit with `activation_checkpointing: true`" in out
    assert "precision: bf16" not in out
    assert "would fit with card" in out


def test_fit_shows_a_card_that_only_the_facts_describe(runtime, tmp_path, capsys):
    runtime(answers())
    own = re.sub(r"(?m)^resources: .*$", "", SPEC)
    facts = tmp_path / "facts.yaml"
    facts.write_text("gpus_per_node: 1\ngpu_memory_mib: 16000\ncompute_capability: '8.0'\ncpus: 16\n")
    assert main(["fit", spec(tmp_path, own), "--facts", str(facts)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("gpu ")]
    assert [row[1] for row in rows] == ["15.6", "15.6"]


@pytest.mark.parametrize(
    ("arguments", "attention"),
    [(["--card", "mi300x"], "auto"), (["--card", "t4"], "fused"), (["--gpu", "mi300x"], "auto")],
)
def test_fit_for_a_card_without_predictions_is_refused(runtime, tmp_path, capsys, arguments, attention):
    runtime(answers())
    own = SPEC + f"model: {{attention_memory: {attention}}}\n"
    assert main(["fit", spec(tmp_path, own), *arguments]) == 1
    assert "error[R348]: nothing is predicted for " in capsys.readouterr().err


def test_card_without_predictions_is_a_warning_beside_other_cards(runtime, tmp_path, capsys):
    runtime(answers())
    assert main(["fit", spec(tmp_path), "--card", "mi300x", "--card", "a100-80"]) == 0
    out, err = capsys.readouterr()
    assert "warning[R348]: nothing is predicted for " in err
    assert "\na100-80 " in out


def test_unknown_plot_format_ambiguous_card_and_unwritable_plot_are_refused(runtime, tmp_path, capsys):
    runtime(answers())
    assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / "out.bmp")]) == 2
    assert main(["fit", spec(tmp_path), "--card", "a100"]) == 1
    assert "R301" in capsys.readouterr().err
    assert main(["fit", spec(tmp_path), "--plot", str(tmp_path / "no" / "out.svg")]) == 1
    assert "R403" in capsys.readouterr().err
