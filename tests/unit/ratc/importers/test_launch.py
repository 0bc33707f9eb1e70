"""Import of the program that a batch script starts, as an `entrypoint`."""

from __future__ import annotations

from typing import Any

import pytest

from ratc.diagnostics import Source, Span
from ratc.importers import batch, merge
from ratc.importers.model import Carried, Left
from ratc.importers.specification import write
from tests.unit.ratc.importers.test_batch import carried, left


def carried_of(command: str) -> dict[str, Any]:
    """What is carried of a script that runs a command."""
    return carried(f"#SBATCH -N 2\n{command}\n") | {"resources.nodes": None}


def program(command: str) -> tuple[str, str, list[str], str | None] | None:
    """The kind and the name of the program, its arguments, and its launcher; None if none is carried."""
    found = carried_of(command)
    named = [(path.removeprefix("entrypoint."), name) for path, name in found.items() if path.startswith("entrypoint.")]
    kinds = [pair for pair in named if pair[0] != "args"]
    return (*kinds[0], found.get("entrypoint.args", []), found.get("launcher")) if kinds else None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py", ("script", "train.py", [], None)),
        ("/usr/bin/srun /x/torchrun train.py", ("script", "train.py", [], None)),
        ("exec python3.11 -u -X dev train.py -m x", ("script", "train.py", ["-m", "x"], None)),
        ("/opt/venv/bin/python -m my.train a", ("module", "my.train", ["a"], None)),
        ("srun --nodes=2 -n 8 python train.py --a=b", ("script", "train.py", ["--a=b"], "srun")),
        ("mpirun -np 4 python train.py", ("script", "train.py", [], None)),
        ("srun torchrun --nnodes 2 bin/train.py x.py", ("script", "bin/train.py", ["x.py"], None)),
        ("torchrun --nproc_per_node=2 -m my.train --lr 1", ("module", "my.train", ["--lr", "1"], None)),
        ("python -m torch.distributed.run --nnodes 2 train.py", ("script", "train.py", [], None)),
        ("accelerate launch --config_file a.yaml train.py 'a b'", ("script", "train.py", ["a b"], "accelerate")),
        ("srun accelerate launch --module my.train", ("module", "my.train", [], "accelerate")),
        ("python -m accelerate.commands.launch train.py", ("script", "train.py", [], "accelerate")),
        ("deepspeed --num_gpus 2 train.py", ("script", "train.py", [], None)),
        ("python train.py 'pay $5' '${x}'", ("script", "train.py", ["pay $$5", "$${x}"], None)),
        ("python train.py 'a*b' \"c?\" d\\*e >log.txt 2>&1", ("script", "train.py", ["a*b", "c?", "d*e"], None)),
        ("python train.py >log.txt --lr 1", None),
        ("python train.py 2>&1 --lr 1", None),
        ("python train.py --lr 0<in.txt", None),
        ("python train.py {log}>log.txt", None),
        ("python train.py <in.txt", None),
        ("python train.py <<<in", None),
        ("python -c 'import x'", None),
        ("python - <x", None),
        ("python", None),
        ("python -m", None),
        ("python $SCRIPT --a", None),
        ("accelerate config", None),
        ("torchrun --nnodes 2 $SCRIPT", None),
        ("torchrun -m", None),
        ("srun ./train.sh", None),
        ("srun bash -c 'python train.py'", None),
    ],
)
def test_launcher_program_and_arguments_are_separated(command: str, expected: Any) -> None:
    assert program(command) == expected


@pytest.mark.parametrize("word", ["data/*.csv", "a?", "[ab]c", "x{a,b}", "{1..3}.txt", '$"hi"', "$'a\\n'"])
def test_a_word_that_the_shell_replaces_is_listed(word: str) -> None:
    command = f"python train.py {word} --fine"
    assert program(command) == ("script", "train.py", ["--fine"], None)
    assert left(f"#SBATCH -N 2\n{command}\n") == ["train.py: a word"]


@pytest.mark.parametrize("around", ["singularity exec --nv a.sif", "--container-image=a.sqsh", "/opt/apptainer run a"])
def test_a_container_around_the_program_is_listed(around: str) -> None:
    assert left(f"#SBATCH -N 2\nsrun {around} python train.py\n") == [f"srun {around} python"]


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ("A=1 B=$HOME python train.py --x 1", {"A": "1"}),
        ("env -u C A=1 python train.py --x 1", {"A": "1"}),
        ("srun -n 2 env A=1 python train.py --x 1", {"A": "1"}),
        ("A=1 RANK=0 python train.py --x 1", {"A": "1"}),
        ("nohup python train.py --x 1 &", {}),
        ("time python train.py --x 1", {}),
        ("/usr/bin/time -v -o t python train.py --x 1", {}),
        ("timeout -k 5 3h nice -n 5 python train.py --x 1", {}),
        ("stdbuf -oL python train.py --x 1", {}),
        ("uv run --with a python train.py --x 1", {}),
        ("uv run train.py --x 1", {}),
        ("conda run --no-capture-output -n e python train.py --x 1", {"conda": "e"}),
        ("train.py --x 1", {}),
    ],
)
def test_a_program_behind_others_that_start_it_is_imported(command: str, variables: dict[str, str]) -> None:
    found = carried_of(command)
    assert (found["entrypoint.script"], found["entrypoint.args"]) == ("train.py", ["--x", "1"])
    around = {path.rpartition(".")[2]: value for path, value in found.items() if path.startswith("environment.")}
    assert around == variables


@pytest.mark.parametrize(
    "command",
    ["env -i python train.py", 'env -S "A=1 python train.py"', 'bash -c "python train.py"', "nohup", "A=1 B=2"],
)
def test_other_beginnings_are_only_listed(command: str) -> None:
    assert not [path for path in carried_of(command) if path.startswith("entrypoint")]


@pytest.mark.parametrize("text", ["python train.py --name 'abc --lr 1", 'python train.py --name "abc'])
def test_a_program_with_a_quote_that_does_not_close_is_only_listed(text: str) -> None:
    assert not [path for path in carried_of(text) if path.startswith("entrypoint")]
    found = batch.read("slurm", "f", f"#SBATCH -N 2\n{text}\n")
    assert any("is not valid bash" in item.why for item in found if isinstance(item, Left))


@pytest.mark.parametrize("value", ["*", "*** begin ***", "a/**/b"])
def test_stars_of_the_script_are_not_a_secret(value: str) -> None:
    assert carried_of(f"export A='{value}'\npython train.py")["environment.variables.A"] == value


@pytest.mark.parametrize(
    "command",
    [
        "PASSWORD=hunter2 python train.py",
        "env TOKEN=hunter2 torchrun train.py",
        "export PASSWORD=hunter2\npython train.py",
        "export PASSWORD=hunter2; python train.py",
        'export CFG="password=hunter2"\npython train.py',
        "PASSWORD=x python train.py",
        'export CFG="password=x1"\npython train.py',
        "export URL=https://h/x?token=hunter2\npython train.py",
        "PASSWORD=hunter2\nexport PASSWORD\npython train.py",
    ],
)
def test_a_secret_beside_the_program_is_neither_copied_nor_replaced_by_stars(command: str) -> None:
    found = batch.read("slurm", "f", f"#SBATCH -N 2\n{command}\n")
    assert not [item for item in found if isinstance(item, Carried) and item.path.startswith("environment")]
    assert any("looks like a secret" in item.why for item in found if isinstance(item, Left))
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("command", "conda"),
    [
        ("srun -n 2 conda run -n env python train.py", "env"),
        ("srun micromamba run --name=env python train.py", "env"),
        ("conda run -n $ENV python train.py", None),
        ("conda run -n 'my env' python train.py", None),
        ("conda run -n env_{a,b} python train.py", None),
        ("srun uv run python train.py", None),
    ],
)
def test_the_environment_of_a_manager_is_carried_or_listed(command: str, conda: str | None) -> None:
    found = carried_of(command)
    assert (found["entrypoint.script"], found.get("environment.conda")) == ("train.py", conda)
    whys = [item.why for item in batch.read("slurm", "f", f"{command}\n") if isinstance(item, Left)]
    assert any("chooses an environment" in why for why in whys) == (conda is None)


def test_options_after_the_program_do_not_configure_the_launcher() -> None:
    found = carried_of("torchrun --nproc_per_node 4 train.py --nproc_per_node 9 --mixed_precision fp16")
    assert found["resources.gpus_per_node"] == 4
    assert "training.precision" not in found


def test_hugging_face_trainer_arguments_become_placeholders_and_values() -> None:
    options = "--per_device_train_batch_size 8 --learning_rate=2e-5 --num_train_epochs 3.0 --seed 7 --bf16 --tag seed"
    found = carried_of(f"torchrun train.py {options} --gradient_accumulation_steps 4 --dataloader_num_workers 2")
    assert found["entrypoint.args"] == [
        *("--per_device_train_batch_size", "${micro_batch_size}", "--learning_rate=${learning_rate}"),
        *("--num_train_epochs", "${epochs}", "--seed", "${seed}", "--bf16=${bf16}", "--tag", "seed"),
        *("--gradient_accumulation_steps", "${gradient_accumulation_steps}", "--dataloader_num_workers"),
        "${num_workers}",
    ]
    assert found["training.batch_size"] == 8
    assert found["training.gradient_accumulation_steps"] == 4
    assert found["training.precision"] == "bf16"
    assert found["training.learning_rate"] == 2e-5
    assert (found["training.epochs"], found["seed"], found["data.num_workers"]) == (3, 7, 2)


@pytest.mark.parametrize("option", ["--output_dir out", "--output_dir=out"])
def test_output_dir_of_a_trainer_becomes_the_checkpoint_folder(option: str) -> None:
    script = f"#SBATCH -N 1\npython train.py {option} --per_device_train_batch_size 8\n"
    args = carried(script)["entrypoint.args"]
    assert "=".join(args[:-2]) == "--output_dir=${checkpoint_dir}"
    items = batch.read("slurm", "x", script)
    assert next(item.source for item in items if isinstance(item, Left) and item.deliberate).endswith(
        "--output_dir out"
    )


def test_arguments_of_other_scripts_stay_unchanged() -> None:
    found = carried_of("python train.py --learning_rate 1e-3 --seed 7")
    assert found["entrypoint.args"] == ["--learning_rate", "1e-3", "--seed", "7"]
    assert "seed" not in found


@pytest.mark.parametrize("value", ["x", "2.5", "1e400", "nan", ""])
def test_non_numeric_trainer_value_stays_an_argument(value: str) -> None:
    found = carried_of(f"python train.py --per_device_train_batch_size 8 --num_train_epochs '{value}'")
    assert found["entrypoint.args"][2:] == ["--num_train_epochs", value]


@pytest.mark.parametrize(
    ("written", "args", "values"),
    [
        ("", [], {"precision": "fp32", "gradient_accumulation_steps": 1, "batch_size": 4}),
        ("--fp16", ["--fp16=${fp16}"], {"precision": "fp16"}),
        ("--bf16 True --fp16=False", ["--bf16=${bf16}", "--fp16=${fp16}"], {"precision": "bf16"}),
        ("--bf16 true --bf16 false", ["--bf16=${bf16}", "--bf16=${bf16}"], {"precision": "fp32"}),
        ("--bf16 false --last", ["--bf16=${bf16}", "--last"], {"precision": "fp32"}),
        (
            "--gradient_accumulation_steps 2",
            ["--gradient_accumulation_steps", "${gradient_accumulation_steps}"],
            {"gradient_accumulation_steps": 2},
        ),
        (
            "--per_device_train_batch_size=8",
            ["--per_device_train_batch_size=${micro_batch_size}"],
            {"batch_size": 8},
        ),
    ],
)
def test_the_plan_of_a_trainer_s_script_is_what_it_ran_with(
    written: str, args: list[str], values: dict[str, object]
) -> None:
    found = carried(f"#SBATCH -N 1\npython train.py --per_device_train_batch_size 4 {written}\n")
    assert found["entrypoint.args"][2:] == args
    for key, value in values.items():
        assert found[f"training.{key}"] == value


def test_options_of_a_trainer_may_have_hyphens() -> None:
    found = carried("#SBATCH -N 1\npython train.py --per-device-train-batch-size 8 --learning-rate=1e-3\n")
    assert found["training.batch_size"] == 8
    assert found["entrypoint.args"][0] == "--per-device-train-batch-size"
    assert found["entrypoint.args"][2] == "--learning_rate=${learning_rate}"


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("--gradient_accumulation_steps $ACC", "gradient_accumulation_steps"),
        ("--bf16 $BF", "precision"),
        ("$MORE", "precision"),
        ("--do_train $MORE", "precision"),
        ('--seed=1 "${ARGS[@]}"', "gradient_accumulation_steps"),
        ('--gradient_checkpointing "$@"', "precision"),
        ("--save_only_model $MORE", "gradient_accumulation_steps"),
        ("--config train.yaml", "precision"),
    ],
)
def test_a_value_that_only_the_shell_knows_is_not_assumed(written: str, key: str) -> None:
    line = f"python train.py --per_device_train_batch_size 8 {written}"
    assert f"training.{key}" not in carried(f"#SBATCH -N 1\n{line}\n")


@pytest.mark.parametrize(
    ("line", "precision"),
    [
        ("accelerate launch --config_file a.yaml train.py --per_device_train_batch_size 8", None),
        ("accelerate launch train.py --per_device_train_batch_size 8", None),
        ("torchrun train.py --per_device_train_batch_size 8", "fp32"),
        ("python train.py --per_device_train_batch_size 8 --model_name_or_path $MODEL", "fp32"),
        ("python train.py --per_device_train_batch_size 8 --notes 'see --bf16'", "fp32"),
    ],
)
def test_the_trainer_s_own_precision_is_taken_if_nothing_else_can_give_one(line: str, precision: str | None) -> None:
    found = carried(f"#SBATCH -N 1\n{line}\n")
    assert found.get("training.precision") == precision
    assert found["training.gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    "lines",
    [
        "export ACCELERATE_MIXED_PRECISION=bf16\npython train.py",
        "ACCELERATE_MIXED_PRECISION=bf16 python train.py",
    ],
)
def test_a_variable_that_may_give_the_precision_is_listed_and_none_is_assumed(lines: str) -> None:
    script = f"#SBATCH -N 1\n{lines} --per_device_train_batch_size 8\n"
    merged = merge.merge(batch.read("slurm", "run.sbatch", script))
    assert "training.precision" not in merged.values
    (lost,) = [one for one in merged.left if "ACCELERATE" in one.source]
    assert "--bf16=${bf16}" in lost.why


@pytest.mark.parametrize(
    "option", ["--overwrite_output_dir", "--overwrite-output-dir True", "--resume_from_checkpoint out/checkpoint-5"]
)
def test_options_that_would_begin_each_start_anew_are_left_out(option: str) -> None:
    script = f"#SBATCH -N 1\npython train.py --per_device_train_batch_size 8 {option} --do_train\n"
    assert carried(script)["entrypoint.args"][2:] == ["--do_train"]
    (lost,) = [
        item for item in batch.read("slurm", "run.sbatch", script) if isinstance(item, Left) and not item.deliberate
    ]
    assert option.split()[0].replace("-", "_").strip("_") in lost.source.replace("-", "_")
    assert "requeued" in lost.why


def test_what_a_trainer_takes_by_itself_is_not_for_the_built_in_loop() -> None:
    script = "#SBATCH -N 1\npython train.py --per_device_train_batch_size 4\n"
    where = Span(Source("a", ""), 1, 1, 1, 2)
    merged = merge.merge([*batch.read("slurm", "run.sbatch", script), Carried("model.name", "rat", where, "a")])
    assert not {"training.precision", "training.gradient_accumulation_steps", "entrypoint.script"} & set(merged.values)


def test_a_switch_before_a_secret_option_stays() -> None:
    items = batch.read("slurm", "x", "#SBATCH -N 1\npython train.py --verbose --api-key=sk-abc123def456ghi789 --lr 1\n")
    merged = merge.merge(items)
    assert merged.values["entrypoint.args"].value == ["--verbose", "--lr", "1"]
    assert any("--api-key" in item.source for item in merged.left)


def test_what_a_trainer_takes_by_itself_yields_to_any_file() -> None:
    script = "#SBATCH -N 1\naccelerate launch train.py --per_device_train_batch_size 4\n"
    where = Span(Source("a", ""), 1, 1, 1, 2)
    items = [*batch.read("slurm", "run.sbatch", script), Carried("training.precision", "bf16", where, "a")]
    merged = merge.merge(items)
    assert merged.values["training.precision"].value == "bf16"
    assert not merged.found
    text, _ = write(merged, ["run.sbatch"], "slurm")
    assert "gradient_accumulation_steps: 1  # as Hugging Face's Trainer has it: run.sbatch:2 has no option" in text
    assert "`ratc validate --target slurm`" in text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nnUNetv2_train 501 3d_fullres 0", "name it as `entrypoint: {command: […]}`"),
        ("bash run.sh", "name it as `entrypoint: {command: […]}`"),
        ("singularity exec --nv x.sif python3 train.py", "name the container as `environment.container`"),
        ("nnUNetv2_train 1\npython train.py", "put it into `environment.setup`"),
    ],
)
def test_a_command_that_may_be_the_training_is_listed_as_such(line: str, why: str) -> None:
    lost = [item for item in batch.read("slurm", "x", f"#SBATCH -N 1\n{line}\n") if isinstance(item, Left)]
    assert [why in item.why for item in lost if not item.deliberate] == [True]


def test_argument_that_needs_the_shell_is_left_with_its_option() -> None:
    script = '#SBATCH -N 1\npython train.py --to "$OUT" a $B --last\n'
    items = batch.read("slurm", "run.sbatch", script)
    assert carried(script)["entrypoint.args"] == ["a", "--last"]
    lost = [item for item in items if isinstance(item, Left) and not item.deliberate]
    assert [item.source for item in lost] == ["train.py: --to", "train.py: a word"]
    assert all("add them to `args`" in item.why for item in lost)


@pytest.mark.parametrize(
    ("written", "source"),
    [("--api_key sk-abc123def456ghi789", "--api_key"), ("--api_key=sk-abc123def456ghi789", "--api_key=")],
)
def test_an_argument_that_looks_like_a_secret_is_left_with_that_reason(written: str, source: str) -> None:
    script = f"#SBATCH -N 1\npython train.py {written} --epochs 3\n"
    lost = [item for item in batch.read("slurm", "run.sbatch", script) if isinstance(item, Left)]
    assert carried(script)["entrypoint.args"] == ["--epochs", "3"]
    (one,) = [item for item in lost if item.source.startswith(f"train.py: {source}")]
    assert "sk-abc" not in str(lost)
    assert one.why.startswith("it looks like a secret")


@pytest.mark.parametrize("switch", ["--sort_by_key", "--pin", "--use-key"])
def test_an_option_behind_a_switch_is_not_its_secret(switch: str) -> None:
    script = f"#SBATCH -N 1\npython train.py {switch} --lr 0.1\n"
    assert carried(script)["entrypoint.args"] == [switch, "--lr", "0.1"]


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("export TOKEN=abc`hostname`", "abc"),
        ("export PASSWORD=hunter2x`date`", "hunter"),
        ("echo password is x9`hostname`", "x9"),
        ("(export TOKEN=abc123)", "abc"),
        ("export TOKEN=abc123&& echo b", "abc"),
        ("# the password is hun(ter)2`x`", "hun"),
        ("echo hi # password: hunt(er2)zz", "er2"),
        ('echo "password: <hunter2one>"', "hunter2one"),
        ('echo "password: &hunter2two"', "hunter2two"),
        ('echo "the password is x;hunter2four"', "hunter2four"),
        ("PASSWORD=hunter\\&2zz", "2zz"),
        ("cat <<EOF\npassword: hun;ter2|zz9\nEOF", "zz9"),
        ("cat <<'EOF'\nthe password is `a1;b2`\nEOF", "b2"),
        ('echo "password: x9`hostname`"', "x9"),
    ],
)
def test_stars_leave_the_signs_of_the_shell_where_they_are(line: str, secret: str) -> None:
    script = f"#SBATCH -N 1\n{line}\npython train.py --epochs 3\n"
    assert carried(script)["entrypoint.script"] == "train.py"
    text, found = write(merge.merge(batch.read("slurm", "run.sbatch", script)), ["run.sbatch"])
    assert secret not in text
    assert secret not in "".join(f"{item.message} {item.notes}" for item in found)


@pytest.mark.parametrize(
    ("commands", "script"),
    [
        (["python prepare.py", "torchrun train.py"], "train.py"),
        (["srun python train.py", "python report.py"], "train.py"),
        (["python prepare.py", "python -m torch.distributed.run train.py"], "train.py"),
        (["python a.py", "python b.py"], None),
        (["torchrun a.py", "accelerate launch b.py"], None),
    ],
)
def test_program_of_a_launcher_is_preferred_among_several(commands: list[str], script: str | None) -> None:
    text = "".join(f"{command}\n" for command in ("#SBATCH -N 1", *commands))
    assert carried(text).get("entrypoint.script") == script
    lost = [item for item in batch.read("slurm", "x", text) if isinstance(item, Left) and not item.deliberate]
    assert len(lost) == (1 if script else 2)
    assert all("as `entrypoint`" in item.why for item in lost)


@pytest.mark.parametrize(
    "colon", ["srun --het-group=0 python a.py : --het-group=1 python b.py", "mpirun -n 1 a.py : b"]
)
def test_command_with_several_programs_gives_no_entrypoint(colon: str) -> None:
    assert not [path for path in carried(colon) if path.startswith("entrypoint")]


def test_a_description_of_the_model_excludes_an_entrypoint() -> None:
    items = batch.read("slurm", "run.sbatch", "#SBATCH -N 1\naccelerate launch train.py\n")
    where = items[0].span
    merged = merge.merge([*items, Carried("model.feature_dims", 64, where, "f")])
    assert not [name for name in merged.values if name.startswith(("entrypoint", "launcher"))]
    assert any("`model.feature_dims`" in item.why for item in merged.left)


def test_what_launchers_say_of_the_loop_does_not_exclude_an_entrypoint() -> None:
    items = batch.read("slurm", "run.sbatch", "#SBATCH -N 1\naccelerate launch train.py\n")
    where = items[0].span
    given = {"training.use_accelerate": True, "training.zero_stage": 2, "training.deepspeed": True}
    merged = merge.merge([*items, *(Carried(path, value, where, path) for path, value in given.items())])
    assert {"entrypoint.script", "launcher"} <= merged.values.keys()
    assert not given.keys() & merged.values.keys()
    lost = [item.source for item in merged.left if not item.deliberate]
    assert lost == ["training.zero_stage", "training.deepspeed"]
    merged = merge.merge([*items, Carried("training.deepspeed", False, where, "a")])
    assert not [item for item in merged.left if not item.deliberate], "a program has none anyway"
    text, found = write(merged, ["run.sbatch"])
    assert "data_dir" not in text
    assert not [item for item in found if "data_dir" in item.message]


def test_secret_in_the_arguments_is_not_imported() -> None:
    items = batch.read("slurm", "x", "#SBATCH -N 1\npython train.py --token hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n")
    text, found = write(merge.merge(items), ["x"])
    assert "hf_aaaa" not in text + str(found)
    assert "script: train.py" in text


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("--hub hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "--hub"),
        ("--hub=hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "--hub"),
        ("--password=hunter2", "--password"),
        ("--url https://me:pa55word@host/x", "--url"),
        ("hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "a word"),
        ("user.token=hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "a word"),
    ],
)
def test_only_the_secret_of_the_arguments_is_left_out(written: str, left: str) -> None:
    items = batch.read("slurm", "x", f"#SBATCH -N 1\npython train.py --lr 0.1 {written} --data /data\n")
    merged = merge.merge(items)
    assert merged.values["entrypoint.args"].value == ["--lr", "0.1", "--data", "/data"]
    assert [item.source for item in merged.left if not item.deliberate] == [f"entrypoint.args: {left}"]
