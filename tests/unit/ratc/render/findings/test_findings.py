"""Output formats for other programs (JSON, SARIF, GitHub, Markdown), from the commands themselves."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from ratc.cli import main
from ratc.diagnostics import Diagnostic, Severity, Source, Span
from ratc.render.findings import github, markdown, sarif
from tests.places import TESTS

GOOD = """\
experiment_name: demo
training: {batch_size: 8}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""
BAD = GOOD.replace("batch_size", "batch_sise") + "seed: many\n"
COMMANDS = (["validate", "spec.yaml"], ["compile", "spec.yaml", "-o", "out"])
TOKEN = "hf_" + "a" * 30


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "splits.json").write_text("{}")
    return tmp_path


def run_with_format(capsys, words: list[str], form: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main([*words, "--format", form])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("form", ["json", "sarif", "github", "markdown"])
def test_status_and_codes_are_the_same_in_every_format(folder, capsys, words, form):
    for text, status, codes in ((GOOD, 0, set()), (BAD, 1, {"R101", "R102"})):
        Path("spec.yaml").write_text(text)
        given, out = run_with_format(capsys, words, form)
        assert given == status
        assert set(re.findall(r"R\d{3}", out.split('"rules"')[0] if form == "sarif" else out)) >= (
            codes if form != "sarif" else set()
        )
        if form in ("json", "sarif"):
            tree = json.loads(out)
            found = tree["findings"] if form == "json" else tree["runs"][0]["results"]
            assert {item.get("code") or item["ruleId"] for item in found} == codes


def test_check_writes_findings_with_their_file_and_line_as_json(folder, capsys):
    Path("spec.yaml").write_text(GOOD)
    assert main(["compile", "spec.yaml"]) == 0
    assert json.loads(run_with_format(capsys, ["check"], "json")[1])["findings"] == []
    lock = Path("compiled/demo/local/lock.yaml")
    lock.write_text(lock.read_text().replace("seed: 42", "seed: 43"))
    status, out = run_with_format(capsys, ["check"], "json")
    (finding,) = json.loads(out)["findings"]
    assert (status, finding["file"]) == (1, "compiled/demo/local/lock.yaml")
    assert lock.read_text().split("\n")[finding["line"] - 1] == "seed: 43"


def test_location_of_a_finding_spans_the_key(folder, capsys):
    Path("spec.yaml").write_text(BAD)
    finding = json.loads(run_with_format(capsys, COMMANDS[0], "json")[1])["findings"][0]
    line = BAD.split("\n")[finding["line"] - 1]
    assert line[finding["column"] - 1 : finding["end_column"] - 1] == "batch_sise"
    assert (finding["file"], finding["fixable"]) == ("spec.yaml", True)


def test_github_format_escapes_control_characters():
    source = Source("a,b:c%.yaml", "x: 1\n")
    item = Diagnostic("R101", "100 % of `a::b`\nis bad", Span(source, 1, 1, 1, 2), ("so\rit is",))
    line = github.document([item], "ratc validate")
    assert line == (
        "::error title=R101 (ratc validate),file=a%2Cb%3Ac%25.yaml,line=1,endLine=1,col=1,endColumn=2"
        "::100 %25 of `a::b`%0Ais bad%0Anote: so%0Dit is\n"
    )


def test_finding_of_a_variable_has_no_location(folder, capsys, monkeypatch):
    Path("spec.yaml").write_text(GOOD)
    monkeypatch.setenv("RAT_EPOCHS", "many")
    assert "file=" not in run_with_format(capsys, COMMANDS[0], "github")[1]
    (result,) = json.loads(run_with_format(capsys, COMMANDS[0], "sarif")[1])["runs"][0]["results"]
    assert "locations" not in result
    finding = json.loads(run_with_format(capsys, COMMANDS[0], "json")[1])["findings"][0]
    assert (finding["file"], finding["source"]) == (None, "RAT_EPOCHS")


@pytest.mark.parametrize("form", ["text", "json", "sarif", "github", "markdown"])
def test_no_output_format_shows_a_secret(folder, capsys, form):
    Path("spec.yaml").write_text(GOOD + f"seed: {TOKEN}\n")
    main(["validate", "spec.yaml", "--format", form])
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


def test_markdown_escapes_markup_of_messages():
    source = Source("spec.yaml", "x: 1\n")
    item = Diagnostic("R101", "a <b> *c* | `d*e`", Span(source, 1, 1, 1, 2), severity=Severity.WARNING)
    text = markdown.document([item], "ratc validate")
    assert text == (
        "### `ratc validate`: 0 errors, 1 warning\n\n- 🟡 **R101** `spec.yaml:1:1`: a \\<b\\> \\*c\\* \\| `d*e`\n"
    )


def sarif_of(folder: Path, capsys, text: str) -> dict:
    (folder / "spec.yaml").write_text(text)
    return json.loads(run_with_format(capsys, COMMANDS[0], "sarif")[1])


def test_sarif_meets_the_listed_requirements_of_the_standard(folder, capsys):
    """The requirements of SARIF 2.1.0 on the objects that ratc writes, by the sections that state them."""
    log = sarif_of(folder, capsys, BAD)
    assert log["version"] == "2.1.0"  # 3.13.2
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]  # 3.19.23
    assert [rule["id"] for rule in rules] == sorted({rule["id"] for rule in rules})
    for rule in rules:
        assert rule["shortDescription"]["text"]  # 3.49.9
        assert rule["help"]["text"]
        assert f"# {rule['id']}: " in rule["help"]["markdown"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]  # 3.27.6
        assert result["level"] in ("error", "warning", "note", "none")  # 3.27.10
        assert result["message"]["text"]  # 3.11.8
        for location in result["locations"]:
            place = location["physicalLocation"]
            assert place["artifactLocation"]["uriBaseId"] in run["originalUriBaseIds"]  # 3.4.4
            region = place["region"]
            assert 1 <= region["startLine"] <= region["endLine"]  # 3.30.5, 3.30.7
            assert region["startColumn"] >= 1
    (fix,) = [fix for result in run["results"] for fix in result.get("fixes", ())]  # 3.55
    (replacement,) = fix["artifactChanges"][0]["replacements"]
    assert replacement["insertedContent"] == {"text": "batch_size"}


SARIF = json.loads((TESTS / "standards/sarif-2.1.0.json").read_text())


def test_official_schema_refuses_invalid_sarif(folder, capsys):
    log = sarif_of(folder, capsys, BAD)
    log["runs"][0]["results"][0]["level"] = "dreadful"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, SARIF)


@pytest.mark.parametrize("text", [GOOD, BAD])
@pytest.mark.parametrize(
    "words",
    [
        *COMMANDS,
        ["compile", "spec.yaml", "--check"],
        ["check"],
        ["diff", "other.yaml", "spec.yaml"],
        ["explain", "spec.yaml", "training.micro_batch_size"],
        ["fit", "spec.yaml", "--card", "no-such-card"],
        ["profile", "spec.yaml"],
        ["report", "spec.yaml"],
        ["import", "spec.yaml", "-o", "imported.yaml"],
        ["init", "spec.yaml"],
        ["probe", "slurm", "-o", "facts.yaml"],
        ["train", "spec.yaml", "--set", "data.data_dir=/nowhere", "--", "--help"],
        ["submit", "spec.yaml", "--target", "slurm", "--dry-run"],
    ],
    ids=" ".join,
)
def test_sarif_of_every_command_is_valid_by_the_official_schema(folder, capfd, monkeypatch, words, text):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    Path("spec.yaml").write_text(text)
    Path("other.yaml").write_text(GOOD.replace("8", "16"))
    command = words[0]
    at = words.index("--") if "--" in words else len(words)
    main([*words[:at], "--format", "sarif", *words[at:]])
    out, err = capfd.readouterr()
    log = json.loads(err if command == "profile" else out)
    jsonschema.validate(log, SARIF)
    assert log["runs"][0]["invocations"][0]["commandLine"] == f"ratc {command}"


def test_github_format_shows_a_difference_at_its_line(folder, capsys):
    Path("old.yaml").write_text(GOOD)
    Path("new.yaml").write_text(GOOD.replace("batch_size: 8", "batch_size: 16") + "description: more of it\n")
    status, out = run_with_format(capsys, ["diff", "old.yaml", "new.yaml"], "github")
    assert status == 1
    batch, words = (line for line in out.splitlines() if "old.yaml" not in line)
    assert batch.startswith("::warning title=R440 (ratc diff),file=new.yaml,line=2,")
    assert "`training.global_batch_size` 8 → 16 (changes training" in batch
    assert words.startswith("::notice title=R440 (ratc diff),file=new.yaml,line=5,")
    status, out = run_with_format(capsys, ["diff", "old.yaml", "old.yaml"], "github")
    assert (status, out) == (0, "")


def test_explain_writes_values_as_markdown_and_pages_as_json(folder, capsys):
    Path("spec.yaml").write_text(GOOD)
    status, out = run_with_format(capsys, ["explain", "spec.yaml", "training.global_batch_size"], "markdown")
    assert status == 0
    assert out.splitlines()[2].startswith("| `training.global_batch_size` | `8` | ")
    page = json.loads(run_with_format(capsys, ["explain", "R304"], "json")[1])
    assert page["page"].startswith(f"# R304: {page['title']}\n")


def test_sarif_fingerprint_does_not_depend_on_the_line(folder, capsys):
    def prints(text: str) -> list[str]:
        results = sarif_of(folder, capsys, text)["runs"][0]["results"]
        return [result["partialFingerprints"]["ratcFinding/v1"] for result in results]

    assert prints(BAD) == prints("# one line more\n" + BAD)
    assert len(set(prints(BAD))) == 2


@pytest.mark.parametrize(
    ("name", "artifact"),
    [
        ("a b.yaml", {"uri": "a%20b.yaml", "uriBaseId": "%SRCROOT%"}),
        ("./é.yaml", {"uri": "%C3%A9.yaml", "uriBaseId": "%SRCROOT%"}),
        ("../up.yaml", {"uri": "../up.yaml"}),
        ("/data/x.yaml", {"uri": "file:///data/x.yaml"}),
    ],
)
def test_sarif_names_files_as_uris(name, artifact):
    item = Diagnostic("R101", "words", Span(Source(name, "x: 1\n"), 1, 1, 1, 2))
    (result,) = json.loads(sarif.document([item], "ratc", {}))["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == artifact


@pytest.mark.parametrize("form", ["json", "sarif", "github", "markdown"])
def test_import_reports_left_values_in_every_format(form, tmp_path, capsys):
    (tmp_path / "job.sbatch").write_text("#!/bin/bash\n#SBATCH --gres=gpu:a100:4\nsrun python train.py\n")
    assert main(["import", str(tmp_path / "job.sbatch"), "--format", form]) == 0
    out, err = capsys.readouterr()
    assert "gpus_per_node: 4" in out, "the spec alone is on standard output"
    assert "R434" in err
    assert main(["import", str(tmp_path / "job.sbatch"), "-o", str(tmp_path / "s.yaml"), "--format", form]) == 0
    assert capsys.readouterr().out == err
