"""A stranger's folder with pipes, devices, kernel files or hostile git trees in the place of files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))

from ratc import files
from ratc.cli import main
from tests.effort import HANGS_S
from tests.places import ROOT

SPEC = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 2}\ntraining: {batch_size: 2}\n"

READING = (
    ["validate", "config.yaml"],
    ["compile", "config.yaml", "--no-predict", "-o", "out"],
    ["explain", "config.yaml", "seed"],
    ["report", "config.yaml", "-o", "page.html"],
    ["diff", "config.yaml", "good.yaml"],
    ["fit", "config.yaml", "--card", "h100"],
    ["import", "config.yaml", "-o", "new.yaml"],
)
#: A pipe without a writer, and what never ends or tells of this process.
KINDS = ("fifo", "/dev/zero", "/dev/tty", "/proc/kmsg", "/proc/self/environ", "/proc/self/mem", "/sys/kernel/notes")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(SPEC)
    return tmp_path


def put(path: str, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif os.path.exists(kind):
        os.symlink(kind, path)
    else:
        pytest.skip(f"there is no {kind} here")


def run(words: list[str], **variables: str) -> tuple[int, str]:
    """In a process of its own, which a test can end."""
    done = subprocess.run(
        [sys.executable, "-m", "ratc", *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS[1:])
def test_r001_for_a_spec_that_is_no_regular_file(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("config.yaml", kind)
    for words in READING:
        assert main(list(words)) in (1, 2)
        said = capsys.readouterr().err
        assert "[R001]" in said
        assert "PATH=" not in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["overlay", "cluster", "lock", "points", "module", "rate"])
def test_other_inputs_of_a_spec_must_be_regular_files(
    kind: str, place: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends, and shows nothing of this process."""
    Path("config.yaml").write_text(SPEC)
    assert main(["compile", "config.yaml", "-o", "out", "--no-predict"]) == 0
    if place == "overlay":
        put("local_config.yaml", kind)
    elif place == "cluster":
        put("ours.yaml", kind)
        Path("config.yaml").write_text(SPEC.replace("cpus: 2", "cluster: ours.yaml, walltime: '1:00:00'"))
    elif place == "lock":
        os.unlink("out/lock.yaml")
        put("out/lock.yaml", kind)
    elif place == "points":
        put("out/points.tsv", kind)
    elif place == "module":
        put("net.py", kind)
        Path("config.yaml").write_text(SPEC + "model: {name: 'net:Net'}\n")
    else:
        put("config.rate.yaml", kind)
        Path("config.yaml").write_text(SPEC.replace("batch_size: 2", "batch_size: 2, learning_rate: auto"))
    for words in (
        *READING[:5],
        ["check"],
        ["compile", "config.yaml", "-o", "out", "--check", "--no-predict"],
        ["compile", "config.yaml", "--target", "slurm", "-o", "job", "--no-predict"],
        ["diff", "out", "config.yaml"],
        ["explain", "out", "seed"],
        ["tune", "config.yaml", "--collect"],
    ):
        main(list(words))
        said = "".join(capsys.readouterr())
        assert "internal error" not in said, words
        assert "PATH=" not in said


def test_a_spec_from_a_process_substitution_is_read(here: Path) -> None:
    command = f"exec {sys.executable} -m ratc validate <(cat good.yaml)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr


def test_open_regular_opens_only_regular_files(here: Path) -> None:
    with files.open_regular("good.yaml") as file:
        assert file.read() == SPEC.encode()
    os.symlink("good.yaml", "link.yaml")
    with files.open_regular("link.yaml") as file:
        assert file.read() == SPEC.encode()
    with pytest.raises(IsADirectoryError):
        files.open_regular(".")


@pytest.mark.parametrize("word", ["key", "value", "card", "option"])
def test_a_word_of_a_million_letters_is_refused_in_linear_time(
    word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is suggested in its place took minutes to find."""
    long = "x" * 900_000
    texts = {
        "key": f'{SPEC}? "{long}"\n: 1\n',
        "value": SPEC.replace("batch_size: 2", f"precision: {long}"),
        "card": SPEC.replace("num_gpus: 0", f"num_gpus: 1, gpu: {long}"),
        "option": SPEC,
    }
    Path("config.yaml").write_text(texts[word])
    assert main(["validate", "config.yaml", *([f"--set={long}=1"] if word == "option" else [])]) == 1
    assert "error[R" in capsys.readouterr().err


def tree(*entries: tuple[str, str, str]) -> str:
    """A tree of git as nobody's git writes it: (mode, name, object)."""
    raw = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(thing) for mode, name, thing in entries)
    return git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", given=raw)


def git(*words: str, given: bytes = b"") -> str:
    done = subprocess.run(["git", *words], input=given, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_a_git_tree_is_not_extracted_outside_its_folder(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names with `..`, a link with the name of a folder, and links that lead out by way of other links."""
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("TMPDIR", str(outside))
    monkeypatch.setattr("tempfile.tempdir", None)
    git("init", "-q")
    spec = git("hash-object", "-w", "--stdin", given=SPEC.encode())
    evil = git("hash-object", "-w", "--stdin", given=b"evil: true\n")

    def link(aim: str) -> str:
        return git("hash-object", "-w", "--stdin", given=aim.encode())

    inner = tree(("100644", "evil.yaml", evil))
    up = tree(("40000", "..", inner))
    climbs = tree(("120000", "d.yaml", link("../x")))
    root = tree(
        ("40000", "..", up),
        ("100644", "config.yaml", spec),
        ("40000", "a", climbs),
        ("120000", "m.yaml", link("a/d.yaml/../..")),
        ("40000", "m.yaml", inner),
        ("120000", "n.yaml", link("/etc/passwd")),
        ("40000", "x", tree(("100644", "some.yaml", spec))),
    )
    commit = git("-c", "user.name=n", "-c", "user.email=e", "commit-tree", root, "-m", "x")
    Path("config.yaml").write_text(SPEC)
    status, said = run(["diff", f"{commit}:config.yaml", "config.yaml"], TMPDIR=str(outside))
    assert (status, "Traceback" in said) == (0, False), said
    assert not list(outside.rglob("evil.yaml"))
    assert not (outside.parent / "evil.yaml").exists()


READ_DATA = """
import json
from pathlib import Path
from ratc_runtime.config.lock import lock_digest
from ratc_runtime.data import lengths
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.isic import IsicSegmentation
from ratc_runtime.data.volumes import VolumePatches
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tracking.interface import About

def refused(read):
    try:
        read()
    except (RuntimeFinding, OSError):
        return
    raise SystemExit("it was read")

lengths._read(Path("splits.json"))
lengths._read(Path("annotations/instances_train.json"))
refused(lambda: IsicSegmentation(Path(), "train", (6, 8)))
refused(lambda: CocoDetection(Path(), "train", (6, 8)))
Path("splits.json").unlink()
Path("splits.json").write_text(json.dumps({"train": ["a"]}))
refused(lambda: IsicSegmentation(Path(), "train", (6, 8))[0])
refused(lambda: VolumePatches(Path(), "train", (2, 2, 2))[0])
refused(lambda: About.read(Path("about.json"), Path()))
Path("point.yaml").write_text("shared: shared.yaml")
refused(lambda: lock_digest(Path("point.yaml")))
"""


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/tty"])
def test_files_of_a_data_set_and_of_a_run_must_be_regular(kind: str, here: Path) -> None:
    for name in ("images", "masks", "annotations"):
        os.mkdir(name)
    for name in (
        "splits.json",
        "annotations/instances_train.json",
        "images/a.png",
        "masks/a_segmentation.png",
        "images/a.nii",
        "masks/a_segmentation.nii",
        "about.json",
        "shared.yaml",
    ):
        put(name, kind)
    done = subprocess.run(
        [sys.executable, "-c", READ_DATA],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tiny_file_that_claims_a_huge_list_is_refused(here: Path) -> None:
    from ratc_runtime.data.folders import split_names
    from ratc_runtime.errors import RuntimeFinding

    with open("splits.json", "wb") as file:
        file.truncate(10 * 2**40)
    with pytest.raises(RuntimeFinding) as caught:
        split_names(Path(), "train")
    assert caught.value.code == "R506"
