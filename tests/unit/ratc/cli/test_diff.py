"""`ratc diff` of revisions, folders and locks, as a git diff driver, and its errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ratc.cli import main
from tests.places import CASES

SPEC = """\
experiment_name: demo
training: {batch_size: 8, epochs: 20}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""


def git(*words: str, folder: Path = Path()) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def diff(capsys, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["diff", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two commits of `specs/spec.yaml` with what was compiled; the shell is at the root."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main", ".")
    spec = Path("specs/spec.yaml")
    spec.parent.mkdir()
    for epochs in (20, 30):
        spec.write_text(SPEC.replace("20", str(epochs)))
        assert main(["compile", str(spec)]) == 0
        git("add", "-A")
        git("commit", "-q", "-m", f"{epochs} epochs")
    return spec


EPOCHS = "training.epochs: 20 → 30"


@pytest.mark.parametrize(
    "sides",
    [
        ("HEAD~1:specs/spec.yaml", "specs/spec.yaml"),
        ("HEAD~1:", "specs/spec.yaml"),
        ("HEAD~1:specs/spec.yaml", "HEAD:"),
        ("main~1:specs/spec.yaml", "HEAD:specs/compiled/demo/local"),
        ("HEAD~1:specs/compiled/demo/local", "specs/compiled/demo/local"),
        ("HEAD~1:specs/compiled/demo", "specs/compiled/demo"),
        ("HEAD~1:specs/compiled/demo/local/lock.yaml", "specs/spec.yaml"),
        ("HEAD~1:specs/spec.yaml",),
    ],
    ids=" ".join,
)
def test_diff_accepts_revisions_folders_specs_and_locks(repository, capsys, sides):
    status, out, _ = diff(capsys, *sides)
    assert (status, EPOCHS in out) == (1, True)
    assert "HEAD~1:specs/spec.yaml:2:35" in out or "main~1:specs/spec.yaml:2:35" in out, (
        "places are told of the revision"
    )
    assert "ratc-" not in out, "no temporary folder is named"


def test_one_path_is_compared_with_its_last_commit(repository, capsys):
    assert diff(capsys, str(repository))[0] == 0
    repository.write_text(SPEC)
    status, out, _ = diff(capsys, str(repository))
    assert (status, "training.epochs: 30 → 20" in out) == (1, True)


def test_path_of_a_revision_is_relative_to_the_root_or_the_working_folder(repository, capsys, monkeypatch):
    monkeypatch.chdir("specs")
    for path in ("specs/spec.yaml", "spec.yaml", "./spec.yaml"):
        assert EPOCHS in diff(capsys, f"HEAD~1:{path}", "spec.yaml")[1]


def test_spec_and_its_own_lock_do_not_differ(repository, capsys):
    assert diff(capsys, "specs/spec.yaml", "specs/compiled/demo/local") == (0, "", "ratc diff: nothing differs\n")


def test_edited_lock_is_compared_by_its_own_values(repository, capsys):
    path = Path("specs/compiled/demo/local/lock.yaml")
    path.write_text(path.read_text().replace("learning_rate: 0.0001", "learning_rate: 0.5"))
    status, out, _ = diff(capsys, "HEAD:specs/compiled/demo/local", str(path))
    assert (status, "training.learning_rate: 0.0001 → 0.5" in out) == (1, True)


def test_changed_ratc_version_is_listed_as_a_cause(repository, capsys):
    path = Path("specs/compiled/demo/local/lock.yaml")
    path.write_text(path.read_text().replace('ratc_version: "0.1.0"', 'ratc_version: "0.0.9"'))
    _, out, _ = diff(capsys, str(path), "specs/spec.yaml")
    assert "ratc_version: 0.0.9 → 0.1.0" in out.replace('"', "")


def test_lock_is_recognised_under_any_file_name(repository, capsys):
    lock = Path("specs/compiled/demo/local/lock.yaml")
    shutil.copy(lock, "reviewed.yaml")
    assert diff(capsys, "reviewed.yaml", "specs/spec.yaml")[0] == 0
    Path("other.yml").write_text(lock.read_text().replace("seed: 0", "seed: 1").replace("seed: 42", "seed: 1"))
    status, out, err = diff(capsys, "reviewed.yaml", "other.yml")
    assert (status, err) == (1, "")
    assert "seed" in out
    assert main(["explain", "reviewed.yaml", "training.micro_batch_size"]) == 0


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("nowhere:specs/spec.yaml", "specs/spec.yaml", "R420", "not know the revision `nowhere`"),
        ("mian:", "specs/spec.yaml", "R420", "did you mean `main`?"),
        ("HEAD:specs/other.yaml", "specs/spec.yaml", "R421", "no `specs/other.yaml` in revision `HEAD`"),
        ("HEAD:../outside.yaml", "specs/spec.yaml", "R421", "outside the repository"),
        ("HEAD:/etc/passwd", "specs/spec.yaml", "R421", "outside the repository"),
        ("specs/none.yaml", "specs/spec.yaml", "R001", "no file `specs/none.yaml`"),
        ("specs/compiled", "specs/spec.yaml", "R422", "2 compiled folders"),
        ("empty", "specs/spec.yaml", "R422", "holds no lock.yaml"),
        ("newer/lock.yaml", "specs/spec.yaml", "R428", "from a newer ratc"),
        ("conflict.yaml", "specs/spec.yaml", "R009", "merge conflict"),
        ("conflict/lock.yaml", "specs/spec.yaml", "R009", "compile the spec again instead"),
    ],
)
def test_input_that_cannot_be_compared_exits_with_2_and_the_reason(repository, capsys, old, new, code, words):
    shutil.copytree("specs/compiled/demo/local", "specs/compiled/demo/slurm")
    Path("empty").mkdir()
    lock = Path("specs/compiled/demo/local/lock.yaml").read_text()
    conflict = "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> theirs\n"
    for name, text in {
        "newer/lock.yaml": lock.replace("lock_version: 1", "lock_version: 9"),
        "conflict.yaml": SPEC + conflict,
        "conflict/lock.yaml": lock + conflict,
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    status, out, err = diff(capsys, "--", old, new)
    assert (status, out) == (2, "")
    assert f"error[{code}]" in err
    assert words in err


def test_missing_revision_of_a_shallow_clone_is_explained(repository, tmp_path, capsys, monkeypatch):
    git("clone", "-q", "--depth", "1", f"file://{tmp_path}", "shallow")
    monkeypatch.chdir("shallow")
    status, _, err = diff(capsys, "HEAD~1:", "specs/spec.yaml")
    assert status == 2
    assert "this clone is shallow" in err
    assert "fetch-depth: 0" in err


def test_one_path_outside_of_a_git_repository_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("spec.yaml").write_text(SPEC)
    status, _, err = diff(capsys, "spec.yaml")
    assert (status, "not in a git repository" in err) == (2, True)
    status, _, err = diff(capsys, "spec.yam")
    assert (status, "no file `spec.yam`" in err, "did you mean `spec.yaml`" in err, "git" in err) == (
        2,
        True,
        True,
        False,
    )


def test_two_revisions_without_a_path_are_refused(repository, capsys):
    assert diff(capsys, "HEAD~1:", "HEAD:")[0] == 2


def test_diff_ignores_shell_variables(repository, capsys, monkeypatch):
    monkeypatch.setenv("RAT_EPOCHS", "77")
    assert "77" not in diff(capsys, "HEAD~1:", str(repository))[1]


def test_old_side_is_read_with_the_overlays_and_links_of_its_revision(repository, capsys):
    shutil.copytree(CASES / "slurm-two-nodes" / "clusters", "specs/clusters")
    case = (CASES / "slurm-two-nodes" / "spec.yaml").read_text()
    Path("specs/real.yaml").write_text(case)
    Path("specs/link.yaml").symlink_to("real.yaml")
    overlay = Path("specs/slurm_link.yaml")
    overlay.write_text('resources: {walltime: "1:00:00"}\n')
    git("add", "-A")
    git("commit", "-q", "-m", "overlay")
    overlay.unlink()
    status, out, err = diff(capsys, "HEAD:", "specs/link.yaml", "--target", "slurm")
    assert status == 1, err
    assert "job.walltime_seconds: 1 h → 1 day" in out
    assert "HEAD:specs/slurm_link.yaml:1:23" in out


def test_ignore_option_hides_placement_and_cosmetic_changes(repository, capsys):
    Path("other.yaml").write_text(SPEC.replace("20", "30").replace("{data_dir: data}", "{data_dir: elsewhere}"))
    assert diff(capsys, str(repository), "other.yaml")[0] == 1
    assert diff(capsys, str(repository), "other.yaml", "--ignore", "placement")[0] == 0
    Path("other.yaml").write_text(SPEC.replace("20", "30") + "description: words\n")
    assert diff(capsys, str(repository), "other.yaml", "--ignore", "cosmetics")[0] == 0


def test_two_points_of_an_array_can_be_compared(tmp_path, capsys, monkeypatch):
    shutil.copytree(CASES / "slurm-array" / "expected", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    status, out, _ = diff(capsys, "a/points/small", "a/points/large")
    assert status == 1
    assert "model.args.feature_dims: 64 → 256" in out


def test_json_output_has_the_old_and_the_new_value(repository, capsys):
    tree = json.loads(diff(capsys, "HEAD~1:", str(repository), "--format", "json")[1])
    assert (tree["version"], tree["same"], tree["effects"]) == (1, False, ["training", "resume", "cost"])
    change = next(change for change in tree["changes"] if change["kind"] == "plan")
    assert (change["old"]["value"], change["new"]["value"], change["causes"]) == (20, 30, ["spec:training.epochs"])


def test_secret_in_a_changed_setting_is_redacted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "a" * 30
    for name, text in (("a.yaml", SPEC), ("b.yaml", SPEC + f"description: {token}\n")):
        Path(name).write_text(text)
    for form in ("text", "json", "markdown"):
        assert token not in diff(capsys, "a.yaml", "b.yaml", "--format", form)[1]


def test_git_diff_runs_ratc_as_its_driver(repository):
    git("config", "diff.ratc.command", f"'{sys.executable}' -m ratc diff --git-driver")
    Path(".gitattributes").write_text("specs/*.yaml diff=ratc\nlock.yaml diff=ratc\n")
    told = git("diff", "HEAD~1", "--", "specs")
    assert "diff --ratc a/specs/spec.yaml b/specs/spec.yaml" in told
    assert told.count(EPOCHS) == 2
    repository.write_text(SPEC.replace("20", "30") + "# a comment\n")
    assert "comments, order or layout" in git("diff")
    repository.write_text("experiment_name: [\n")
    assert "+experiment_name: [" in git("diff"), "what cannot be compared is told line by line"
    Path("specs/new.yaml").write_text(SPEC)
    git("add", "-N", "specs/new.yaml")
    assert "+experiment_name: demo" in git("diff", "--", "specs/new.yaml")
    git("mv", "-f", "specs/new.yaml", "specs/spec2.yaml")
    repository.unlink()
    assert "-experiment_name: demo" in git("diff", "--", "specs/spec.yaml")


def test_comments_of_a_lock_are_shown_as_reasons(repository, capsys):
    path = Path("specs/compiled/demo/local/lock.yaml")
    tree = yaml.safe_load(path.read_text())
    assert tree["training"]["precision"] == "fp32"
    path.write_text(path.read_text().replace("precision: fp32  # the CPU", "precision: bf16  # by hand"))
    _, out, _ = diff(capsys, "HEAD:specs/compiled/demo/local", str(path), "--format", "text")
    assert "was  the CPU" in out
    assert "is   by hand" in out
