"""The command by which a batch script starts a training: its launcher's options, and the program as an `entrypoint`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ratc.catalog import launch_variables
from ratc.diagnostics import Span
from ratc.importers.model import OF_A_SECRET, Carried, Item, Left, is_masked
from ratc.importers.shell import Command

#: Programs of schedulers that start others.
_STARTERS = frozenset(("srun", "mpirun", "jsrun"))
_PYTHON = re.compile(r"python[\d.]*")
#: Programs that start another one as it is: their options that have a value, and the words that follow the options.
_WRAPPERS: dict[str, tuple[tuple[str, ...], int]] = {
    "exec": ((), 0),
    "env": (("-u", "--unset", "-C", "--chdir"), 0),
    "nohup": ((), 0),
    "nice": (("-n", "--adjustment"), 0),
    "stdbuf": (("-i", "-o", "-e"), 0),
    "time": (("-f", "--format", "-o", "--output"), 0),
    "timeout": (("-k", "--kill-after", "-s", "--signal"), 1),
}
#: Programs whose `run` starts another one in an environment, and the options of `run` that have a value.
_MANAGERS: dict[str, tuple[str, ...]] = {
    "conda": ("-n", "--name", "-p", "--prefix", "--cwd"),
    "mamba": ("-n", "--name", "-p", "--prefix", "--cwd"),
    "micromamba": ("-n", "--name", "-p", "--prefix", "--cwd"),
    "poetry": (),
    "uv": ("-p", "--python", "--with", "--extra", "--group", "--project", "--env-file"),
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
#: Modules that are launchers, and the launcher's name.
_MODULES = {
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "accelerate.commands.launch": "accelerate",
}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
#: Options of scripts with a Trainer of Hugging Face's that the plan decides: the spec's key, and the placeholder.
_TRAINER = {
    "per_device_train_batch_size": ("training.batch_size", "micro_batch_size", int),
    "gradient_accumulation_steps": ("training.gradient_accumulation_steps", "gradient_accumulation_steps", int),
    "learning_rate": ("training.learning_rate", "learning_rate", float),
    "num_train_epochs": ("training.epochs", "epochs", int),
    "seed": ("seed", "seed", int),
    "dataloader_num_workers": ("data.num_workers", "num_workers", int),
}
#: The variable that gives it a precision without an option.
PRECISION = "ACCELERATE_MIXED_PRECISION"
#: Its switches for a precision, which the plan has as placeholders of the same names.
_PRECISIONS = ("bf16", "fp16")
_ON, _OFF = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
#: How it trains without these options.
_DEFAULTS: dict[str, tuple[object, frozenset[str]]] = {
    "training.precision": ("fp32", frozenset(_PRECISIONS)),
    "training.gradient_accumulation_steps": (1, frozenset(("gradient_accumulation_steps",))),
}
#: Options whose values are words: a word that only the shell knows is one of them behind such an option.
_VALUED = re.compile(
    r".*_(?:dir|file|files|name|path|id|size|steps|epochs|rate|ratio|length|workers|seed|to|type|split|column|token)"
    r"|seed|deepspeed|task|model|dataset"
)
#: Options for a file with further options.
_WITH_FILE = frozenset(("config", "config_file", "args_file"))
#: Its option for a folder, which ratc chooses: only there it looks for what a stopped run goes on from.
_FOLDER, _CHOSEN = "output_dir", "${checkpoint_dir}"
#: Its options that say where a run begins, and why a job has none: each of its starts would begin there.
_BEGINNINGS = {
    "overwrite_output_dir": "a job that is requeued would begin from the start again",
    "resume_from_checkpoint": "a job that is requeued would go back to this one, and not go on from its own newest",
}
#: The option by which such a script is known.
_OF_A_TRAINER = "per_device_train_batch_size"
#: What starts a program in a container, and Slurm's option that does.
_CONTAINER = re.compile(r"(.*/)?(singularity|apptainer|docker|podman|enroot|shifter)|--(container-image|image)(=.*)?")
_RATCS = "ratc writes the command"


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that starts a program. ``own`` are the words before the program, ``args`` those after it.

    ``variables`` are set for the program alone, and ``manager`` is the command that chooses its environment. None
    stands for a word that the shell computes when it runs.
    """

    text: str
    span: Span
    own: tuple[str, ...]
    kind: str | None = None
    program: str = ""
    args: tuple[str | None, ...] = ()
    launcher: str | None = None
    variables: tuple[tuple[str, str | None], ...] = ()
    manager: tuple[str, ...] = ()


def is_launch(words: Sequence[str]) -> bool:
    """Whether a command starts a training: by a launcher, a scheduler's program, Python, or a Python file itself."""
    at = _begin(words)[0]
    return at < len(words) and bool(
        _launcher(words[at]) or words[at].rpartition("/")[2] in _STARTERS or words[at].endswith(".py")
    )


def starts_container(words: Sequence[str]) -> bool:
    """Whether a command runs a program in a container."""
    at = _begin(words)[0]
    if at >= len(words) or not _CONTAINER.fullmatch(words[at]):
        return False
    return words[at].endswith("shifter") or bool({"exec", "run"} & set(words[at + 1 :]))


def split(command: Command, span: Span) -> Launch:
    """Return the parts of a launching command.

    All of it belongs to the launcher if the program cannot be recognised, or if there are several: `srun` and `mpirun`
    start another program after a `:`.
    """
    words = list(command.words or ())
    text = re.sub(r"\\\n", " ", command.text)
    found = _program(words)
    if found is None or found[1] in command.dynamic or ":" in words:
        return Launch(text, span, tuple(words))
    kind, at, launcher = found
    args = [None if number in command.dynamic else word for number, word in enumerate(words)]
    begin, manager = _begin(words)
    manager = manager or _managed(words[begin:at])
    inner = [number for number in range(begin, at) if words[number] == "env"]
    assigning = [*range(begin), *(range(inner[0], at) if inner else ())]
    sets = {number: match for number in assigning if (match := _ASSIGNMENT.fullmatch(words[number]))}
    variables = tuple((match[1], None if number in command.dynamic else match[2]) for number, match in sets.items())
    own = tuple(word for number, word in enumerate(words[:at]) if number not in sets)
    return Launch(text, span, own, kind, words[at], tuple(args[at + 1 :]), launcher, variables, manager)


def _begin(words: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Return the index of the first word that is not about the surroundings of the program: variables, `nohup`, `time`,
    `uv run`; and the words of the last, which choose an environment.
    """
    at, manager = 0, tuple[str, ...]()
    while at < len(words):
        name = words[at].rpartition("/")[2]
        if _ASSIGNMENT.fullmatch(words[at]):
            at += 1
        elif name in _WRAPPERS:
            valued, more = _WRAPPERS[name]
            at = _behind_options(words, at + 1, valued) + more
        elif name in _MANAGERS and words[at + 1 : at + 2] == ["run"]:
            end = _behind_options(words, at + 2, _MANAGERS[name])
            at, manager = end, tuple(words[at:end])
        else:
            break
    return at, manager


def _managed(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words that choose an environment behind a scheduler's program: `srun conda run -n NAME python`."""
    for number, word in enumerate(words):
        if word.rpartition("/")[2] in _MANAGERS and words[number + 1 : number + 2] == ["run"]:
            return tuple(words[number : _behind_options(words, number + 2, _MANAGERS[word.rpartition("/")[2]])])
    return ()


def _behind_options(words: Sequence[str], at: int, valued: Sequence[str]) -> int:
    while at < len(words) and words[at].startswith("-"):
        if words[at] in ("-i", "-", "-S", "--ignore-environment") and "-u" in valued:
            return len(words)  # `env` starts the program in an empty environment, or from one text
        at += 2 if words[at] in valued else 1
    return at


def _program(words: Sequence[str]) -> tuple[str, int, str | None] | None:
    """Return the kind of the program, its index among the words, and the launcher of its processes, if there is one."""
    at = _begin(words)[0]
    if at < len(words) and words[at].endswith(".py"):
        return "script", at, None
    named = words[at].rpartition("/")[2] if at < len(words) else ""
    starter = named if named in _STARTERS else None
    starts = [number for number in range(at, len(words)) if _launcher(words[number])]
    if not starts or (starter is None and starts[0] != at):
        return None
    at = starts[0]
    launcher = _launcher(words[at])
    at += 1
    if launcher == "python":
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
            at += 2 if words[at] in ("-X", "-W") else 1
        if words[at : at + 1] == ["-m"]:
            at += 1
            if at < len(words) and words[at] in _MODULES:
                return _launched(words, at + 1, _MODULES[words[at]])
            return ("module", at, starter) if at < len(words) and _NAME.fullmatch(words[at]) else None
        return ("script", at, starter) if at < len(words) and not words[at].startswith("-") else None
    if launcher == "accelerate":
        return _launched(words, at + 1, launcher) if words[at : at + 1] == ["launch"] else None
    return _launched(words, at, launcher)


def _launched(words: Sequence[str], at: int, launcher: str | None) -> tuple[str, int, str | None] | None:
    """Return the program after a launcher's options, some of which have values: a Python file or `-m`'s module."""
    for number in range(at, len(words)):
        if words[number] in ("-m", "--module"):
            named = number + 1
            return ("module", named, launcher) if named < len(words) and _NAME.fullmatch(words[named]) else None
        if words[number].endswith(".py") and not words[number].startswith("-"):
            return "script", number, launcher
    return None


def _launcher(word: str) -> str | None:
    name = word.rpartition("/")[2]
    if _PYTHON.fullmatch(name):
        return "python"
    return name if name in ("torchrun", "accelerate", "deepspeed") else None


def entrypoint(launches: Sequence[Launch]) -> Iterator[Item]:
    """The program of a script that starts one; of several, the one that a launcher or the scheduler starts."""
    known = [one for one in launches if one.kind]
    chosen = known if len(known) == 1 else [one for one in known if one.launcher]
    for one in launches:
        if len(chosen) == 1 and one is chosen[0]:
            yield from _carried(one)
        elif one.kind and len(chosen) != 1:
            yield Left(one.text, one.span, "several programs are started: name one as `entrypoint`")
        else:
            yield Left(one.text, one.span, f"{_RATCS}; if it is your own program that trains, name it as `entrypoint`")


def _carried(one: Launch) -> Iterator[Item]:
    yield Carried(f"entrypoint.{one.kind}", one.program, one.span, one.text)
    if one.launcher in ("srun", "accelerate"):  # torchrun is what ratc takes by itself
        yield Carried("launcher", one.launcher, one.span, one.text)
    args: list[str] = []
    made_of: dict[str, Carried] = {}  # of an option that stands there twice, the program reads the last
    ahead = list(one.args)
    is_trainer = any(_option(word)[0] == _OF_A_TRAINER for word in ahead if word)
    while ahead:
        word = ahead.pop(0)
        name, value = _option(word or "")
        alone = bool(name) and value is None  # its value is the next word, if it has one
        following = ahead[0] if ahead else ""
        is_next_value = alone and not (following or "").startswith("--")
        why = _not_carried(word) or (_not_carried(following) if is_next_value else "")
        if word is None or why:
            left = "a word" if word is None else word
            yield Left(f"{one.program}: {left}", one.span, why)
            if alone and is_next_value and ahead:
                ahead.pop(0)
            continue
        if is_trainer and name == _FOLDER and (following if alone else value):
            args += [word, _CHOSEN] if alone else [f"--{name}={_CHOSEN}"]
            given = ahead.pop(0) if alone else value
            why = f"`{_CHOSEN}` in its place, a folder for each program in the output folder"
            yield Left(f"{one.program}: --{name} {given}", one.span, why, deliberate=True)
            continue
        if is_trainer and name in _BEGINNINGS:
            said = ahead.pop(0) if alone and following and not following.startswith("-") else value
            yield Left(f"{one.program}: --{name} {said or ''}".rstrip(), one.span, _BEGINNINGS[name])
            continue
        if is_trainer and name in _PRECISIONS:
            said = value if not alone else following if (following or "").lower() in (*_ON, *_OFF) else None
            if alone and said is not None:
                ahead.pop(0)
            path = "training.precision"
            if said is None or said.lower() in _ON:
                made_of[path] = Carried(path, name, one.span, f"{one.program} --{name}")
            elif path not in made_of or made_of[path].value == name:
                made_of[path] = Carried(path, "fp32", one.span, f"{one.program} --{name}")
            args.append(f"--{name}=${{{name}}}")
            continue
        key = _TRAINER.get(name) if is_trainer else None
        made = _number(following or "" if alone else value or "", key[2]) if key else None
        if key is None or made is None:
            args.append(word.replace("$", "$$"))
            continue
        made_of[key[0]] = Carried(key[0], made, one.span, f"{one.program} --{name}")
        args += [word, f"${{{key[1]}}}"] if alone else [f"--{name}=${{{key[1]}}}"]
        if alone:
            ahead.pop(0)
    yield from made_of.values()
    for path, (default, options) in _DEFAULTS.items() if is_trainer else ():
        if path not in made_of and not _may_be_given(one, options):
            yield Carried(path, default, one.span, "Hugging Face's Trainer", is_assumed=True)
    if args:
        yield Carried("entrypoint.args", args, one.span, one.text)
    yield from _variables(one)
    yield from _of_manager(one)
    if any(_CONTAINER.fullmatch(word) for word in one.own):
        yield Left(" ".join(one.own), one.span, "the program runs in a container: name it as `environment.container`")
    else:
        yield Left(" ".join(one.own), one.span, _RATCS, deliberate=True)


def _may_be_given(one: Launch, options: frozenset[str]) -> bool:
    """Whether a Trainer has one of these options, or may have it: by a word that only the shell knows and that is no
    option's value, or by a file of options. Accelerate's launcher gives a precision by its own file or its default one.
    """
    named = {_option(word)[0] for word in one.args if word}
    if named & (options | _WITH_FILE) or (one.launcher == "accelerate" and options & set(_PRECISIONS)):
        return True
    for before, word in zip(("", *one.args), one.args, strict=False):
        name, value = _option(before or "")
        if word is None and (value is not None or not _VALUED.fullmatch(name)):
            return True
    return False


def _not_carried(word: str | None) -> str:
    """Return why a word of the program's is left out; "" if it is known and may be copied."""
    if word is None:
        return "the shell writes its words when it runs, so they are not known here: add them to `args`"
    return OF_A_SECRET if is_masked(word) else ""


def _variables(one: Launch) -> Iterator[Item]:
    """The variables that are set before the program, those of launchers left out."""
    for name, value in one.variables:
        if value is not None and is_masked(value):
            yield Left(f"{name}={value}", one.span, OF_A_SECRET)
        elif value is None:
            yield Left(f"{name}=", one.span, "the variables of the shell are not known here")
        else:
            source = f"{name}={value}"
            yield of_launcher(name, source, one.span) or Carried(
                f"environment.variables.{name}", value, one.span, source
            )


def of_launcher(name: str, source: str, span: Span) -> Left | None:
    """Return the item of a variable that launchers read, which ratc decides; None for another one."""
    why = launch_variables.reason(name)
    if why is not None and name == PRECISION:
        why += ": name the precision in the spec, and hand it over, as by `--bf16=${bf16}`"
    return None if why is None else Left(source, span, f"it {why}")


def _of_manager(one: Launch) -> Iterator[Item]:
    """The environment of `conda run`; that of others has no name, and stands in a folder that they choose."""
    if not one.manager:
        return
    text = " ".join(one.manager)
    named = _named(one.manager) if one.manager[0].endswith(("conda", "mamba")) else ""
    if re.fullmatch(r"[\w.+-]+", named):  # anything else is for the shell to expand, or no name
        yield Carried("environment.conda", named, one.span, text)
    else:
        yield Left(text, one.span, "it chooses an environment: name that as `environment.venv` or `environment.conda`")


def _named(words: Sequence[str]) -> str:
    """Return the value of `-n NAME`, `--name NAME` or `--name=NAME`; empty if there is none."""
    pairs = zip(words, (*words[1:], ""), strict=True)
    return next(
        (
            value if word in ("-n", "--name") else word.partition("=")[2]
            for word, value in pairs
            if word in ("-n", "--name") or word.startswith("--name=")
        ),
        "",
    )


def _option(word: str) -> tuple[str, str | None]:
    """The name of a long option, and the value that stands in the same word; no name for another word."""
    if not word.startswith("--") or word == "--":
        return "", None
    name, equals, value = word[2:].partition("=")
    # A Trainer's script takes its options with hyphens, too.
    return name.replace("-", "_"), value if equals else None


def _number(text: str, kind: type) -> int | float | None:
    try:
        value = float(text)
        return kind(value) if kind is float or value.is_integer() else None
    except (ValueError, OverflowError):
        return None
