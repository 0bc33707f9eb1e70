"""Suggestions for mistyped keys and values of the wrong form, and no suggestion that would not help."""

import re

import pytest

from ratc.cli import main
from ratc.diagnostics import closest
from ratc.facts.cards import card_names, resolve_card

SPEC = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\n"


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(walltime: str | None, *words: str) -> tuple[int, str]:
        extra = f", walltime: {walltime}" if walltime is not None else ""
        (tmp_path / "spec.yaml").write_text(SPEC.replace("cpus: 4", f"cpus: 4{extra}"))
        status = main(["validate", "spec.yaml", *words])
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("number", "hours", "minutes"),
    [
        ("24", "24:00:00", "0:24:00"),
        ("90", "90:00:00", "1:30:00"),
        ("1.5", "1:30:00", "0:01:30"),
        ("1440", "1440:00:00", "24:00:00"),
    ],
)
def test_walltime_without_a_unit_is_refused_with_both_readings(validate, monkeypatch, number, hours, minutes):
    told = [validate(number), validate(f'"{number}"'), validate(None, "--walltime", number)]
    told.append(validate(None, "--set", f"resources.walltime={number}"))
    monkeypatch.setenv("RAT_WALLTIME", number)
    told.append(validate(None))
    for status, said in told:
        assert (status, "error[R106]" in said, f'`"{hours}"`' in said, f'`"{minutes}"`' in said) == (
            1,
            True,
            True,
            True,
        )
    monkeypatch.delenv("RAT_WALLTIME")
    for reading in (hours, minutes):
        assert validate(f'"{reading}"')[0] == 0


def test_suggested_walltime_is_written_without_exponents(validate):
    assert 'write `"10:00:00"` for 10 h, or `"0:10:00"` for 10 min' in validate("1e1")[1]


@pytest.mark.parametrize("number", ["0", "-1", '"0"'])
def test_walltime_of_0_or_less_has_no_suggested_readings(validate, number):
    status, said = validate(number)
    assert (status, "for 0 h" in said) == (1, False)
    assert "help: write it like `24:00:00`" in said


def test_walltime_without_a_unit_in_cluster_facts_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "name: c\nscheduler: slurm\nnode_types: {n: {gpus_per_node: 0, cpus: 4}}\n"
        "partitions: {p: {nodes: {n: 1}, max_walltime: 24}}\n"
    )
    (tmp_path / "spec.yaml").write_text(SPEC.replace("cpus: 4", "cluster: ./c.yaml"))
    assert main(["compile", "spec.yaml", "--target", "slurm"]) == 1
    said = capsys.readouterr().err
    assert '`"24:00:00"`' in said
    assert '`"0:24:00"`' in said


@pytest.mark.parametrize(
    "value", ["3:4:5:6", "24:", "[1]", "true", "1e5", "-3", "99999999", '"forty"', "2024-01-01T00:00"]
)
def test_every_suggested_walltime_is_valid(validate, value):
    status, said = validate(value)
    assert status == 1
    for line in said.splitlines():
        for advised in line.split("`")[1::2] if line.startswith("help: write") else []:
            assert validate(advised)[0] == 0, advised


@pytest.mark.parametrize("word", ["freeze", "colour_space", "x", "resume_from", "optim"])
def test_unrelated_word_is_not_suggested(word):
    assert closest(word, ("deepspeed", "scheduler", "betas", "precision", "epochs", "zero_stage")) is None


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("training.freeze", None),
        ("training.loss_fn", "training.loss"),
        ("training.epoch", "training.epochs"),
        ("trainnig.epoch", "training.epochs"),
        ("data.epochs", None),
    ],
)
def test_shared_section_does_not_make_keys_more_similar(word, meant):
    assert closest(word, ("training.epochs", "training.betas", "training.loss", "training.optimizer")) == meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("epoch", "epochs"),
        ("lerning_rate", "learning_rate"),
        ("batch", "batch_size"),
        ("rate_learning", "learning_rate"),
    ],
)
def test_typo_or_reordered_words_give_a_suggestion(word, meant):
    assert closest(word, ("epochs", "learning_rate", "batch_size", "deepspeed", "seed")) == meant


@pytest.mark.parametrize(
    ("key", "help_text"),
    [
        ("optimiser: adamw", "did you mean `training.optimizer`?"),
        ("batchsize: 4", "did you mean `training.batch_size`?"),
        ("epochs: 4", "`epochs` belongs under `training`"),
        ("freeze: true", ""),
        ("lr: 0.1", ""),
    ],
)
def test_mistyped_key_in_the_wrong_section_is_suggested_with_its_section(tmp_path, monkeypatch, capsys, key, help_text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(f"{SPEC}{key}\n")
    assert main(["validate", "spec.yaml"]) == 1
    said = capsys.readouterr().err
    assert "error[R101]" in said
    helps = [line.removeprefix("help: ") for line in said.splitlines() if line.startswith("help: ")]
    assert helps == ([help_text] if help_text else [])


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("training.seed", "seed"),
        ("training.epoch", "training.epochs"),
        ("epochs", "training.epochs"),
        ("training.image_size", "data.image_size"),
    ],
)
def test_path_with_the_wrong_section_is_suggested_by_its_key(validate, path, meant):
    status, said = validate(None, "--set", f"{path}=1")
    assert (status, f"did you mean `{meant}`?" in said) == (1, True), said


def test_invalid_callable_name_is_answered_with_an_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(f"{SPEC}model: {{name: resnet50}}\n")
    assert main(["validate", "spec.yaml"]) == 1
    assert "help: write it like `my_package.models:UNet`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RTX 3060", "rtx3080", "gtx1080", "a100-3g.30gb", "h10", "v10", "l400"])
def test_card_of_another_model_number_is_never_suggested(name):
    card, found = resolve_card(name, None)
    assert card is None
    assert not any("did you mean" in text for item in found for text in item.helps)


@pytest.mark.parametrize(("key", "slip", "meant"), [("loss", "dise", "dice"), ("optimizer", "admw", "adamw")])
def test_typo_in_a_built_in_name_is_suggested_if_callables_are_allowed(validate, key, slip, meant):
    status, said = validate(None, "--set", f"training.{key}={slip}")
    assert (status, f"did you mean `{meant}`?" in said) == (1, True), said


def test_typo_in_the_letters_of_a_card_gives_a_suggestion():
    assert "rtx4090" in card_names()
    assert resolve_card("rxt4090", None)[1][0].helps == ("did you mean `rtx4090`?",)


@pytest.mark.parametrize(
    ("assignment", "status"),
    [
        ('training.learning_rate="1e-3"', 1),
        ('training.epochs="3"', 1),
        ("resources.memory='64GB'", 0),
        ('resources.walltime="24:00:00"', 0),
        ('description="a"', 0),
    ],
)
def test_quoted_option_value_is_read_like_a_quoted_value_in_a_file(validate, tmp_path, capsys, assignment, status):
    path, _, text = assignment.partition("=")
    section, _, key = path.rpartition(".")
    (tmp_path / "file.yaml").write_text(
        SPEC.replace("cpus: 4", f"cpus: 4, {key}: {text}" if section == "resources" else "cpus: 4")
        + {"training": f"training: {{{key}: {text}}}\n", "": f"{key}: {text}\n"}.get(section, "")
    )
    found = [validate(None, "--set", assignment), (main(["validate", "file.yaml"]), capsys.readouterr().err)]
    assert [one[0] for one in found] == [status, status], found
    if status:
        helps = [re.findall(r"help: (.*)", said)[0] for _, said in found]
        assert helps == ["write `1e-3`" if "rate" in path else "write `3`"] * 2


def test_missing_key_is_explained_by_a_misspelt_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    helps = []
    for text in (
        "experiment_nam: mine\ndata: {data_dir: .}",
        "data_dir_: mine\nexperiment_name: mine",
        "data: {data_dir: .}",
    ):
        (tmp_path / "spec.yaml").write_text(text + "\n")
        assert main(["validate", "spec.yaml"]) == 1
        said = capsys.readouterr().err
        helps.append(re.findall(r"R105.*?(?:help: ([^\n]*))?\n\n", said, re.DOTALL)[0])
    assert helps == ["write `experiment_name` for `experiment_nam`", "", "add `experiment_name: isic-rat-128`"]
