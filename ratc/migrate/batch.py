"""sbatch and bsub scripts: directives, the environment that they make, and what their launcher is told.

Rules: sbatch(1) of Slurm 23 to 25; bsub(1) of LSF 10.1. Directives end at the first command, as the schedulers have it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping

from ratc import launch_variables
from ratc.diagnostics import Source, Span
from ratc.migrate.model import Carried, Item, Left
from ratc.redact import looks_secret
from ratc.units import slurm_time

_Made = list[tuple[str, object]] | str
_OURS = "ratc writes it itself"
_COMMAND = "a command: what the job needs of it belongs into `environment.setup`"
_LAUNCH = re.compile(r"^(?:exec )?(?:srun|mpirun|jsrun|torchrun|accelerate|deepspeed|python3?)\b")


def slurm_walltime(text: str) -> str | None:
    """``D-HH:MM:SS`` of Slurm's minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        return None
    days, *rest = (int(part) if part else None for part in match.groups())
    first, second, third = rest[0] or 0, rest[1], rest[2]
    if days is not None:
        return slurm_time(days * 86400 + first * 3600 + (second or 0) * 60 + (third or 0))
    if third is not None:
        return slurm_time(first * 3600 + (second or 0) * 60 + third)
    return slurm_time(first * 60 + (second or 0))


def _time(text: str) -> _Made:
    walltime = slurm_walltime(text)
    return [("resources.walltime", walltime)] if walltime else "it is no time that can be read"


def _mem(text: str) -> _Made:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    return [("resources.memory", f"{match[1]}{match[2] or 'M'}B")] if match else "it is no size that can be read"


def _gpus(text: str) -> _Made:
    match = re.fullmatch(r"(?:gpu:)?(?:[A-Za-z][\w.-]*:)?(\d+)", text) or re.fullmatch(
        r"gpu(?::[A-Za-z][\w.-]*)?()", text
    )
    return [("resources.gpus_per_node", int(match[1] or 1))] if match else "it asks for something else than GPUs"


def _all_gpus(text: str) -> _Made:
    match = re.fullmatch(r"(?:[A-Za-z][\w.-]*:)?(\d+)", text)
    return [("resources.num_gpus", int(match[1]))] if match else "it is no number of GPUs"


def _lsf_gpus(text: str) -> _Made:
    match = re.search(r"\bnum=(\d+)", text)
    return [("resources.gpus_per_node", int(match[1]))] if match else "it names no number of GPUs"


def _lsf_time(text: str) -> _Made:
    match = re.fullmatch(r"(?:(\d+):)?(\d+)(?:/.*)?", text)
    return [("resources.walltime", slurm_time(int(match[1] or 0) * 3600 + int(match[2]) * 60))] if match else "no time"


def _text(path: str) -> Callable[[str], _Made]:
    return lambda text: [(path, text)]


def _number(path: str) -> Callable[[str], _Made]:
    return lambda text: [(path, int(text))] if text.isdecimal() else "it is no whole number"


def _name(text: str) -> _Made:
    return (
        [("experiment_name", text)]
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
        else [("resources.job_name", text)]
    )


_SITE = "its unit and scope depend on the site; `resources.memory` says it for a node"
_Table = Mapping[str, Callable[[str], _Made]]
SLURM: _Table = {
    "job-name": _name,
    "nodes": _number("resources.nodes"),
    "time": _time,
    "partition": _text("resources.partition"),
    "account": _text("resources.account"),
    "qos": _text("resources.qos"),
    "mem": _mem,
    "gres": _gpus,
    "gpus-per-node": _gpus,
    "gpus": _all_gpus,
    "cpus-per-task": lambda _: "cores of one task; `resources.cpus` says those of a node",
}
SLURM_SHORT = {"J": "job-name", "N": "nodes", "t": "time", "p": "partition", "A": "account", "q": "qos", "G": "gpus"}
SLURM_SHORT |= {"c": "cpus-per-task", "n": "ntasks", "o": "output", "e": "error"}
LSF: _Table = {
    "J": _name,
    "q": _text("resources.queue"),
    "P": _text("resources.account"),
    "W": _lsf_time,
    "gpu": _lsf_gpus,
    "M": lambda _: _SITE,
    "R": lambda _: f"a resource string; {_SITE}",
}
#: Options that ratc works out for itself.
UNNEEDED = frozenset(
    ("output", "error", "ntasks", "ntasks-per-node", "signal", "requeue", "open-mode", "o", "oo", "e", "eo", "n", "cwd")
)
#: What a launcher is told, by option.
LAUNCHER: _Table = {
    "nproc_per_node": _number("resources.gpus_per_node"),
    "nnodes": _number("resources.nodes"),
    "num_nodes": _number("resources.nodes"),
    "num_machines": _number("resources.nodes"),
    "num_gpus": _number("resources.gpus_per_node"),
    "num_processes": _number("resources.num_gpus"),
    "mixed_precision": lambda text: [("training.precision", {"no": "fp32"}.get(text, text))],
    "gradient_accumulation_steps": _number("training.gradient_accumulation_steps"),
    "zero_stage": _number("training.zero_stage"),
}


def read(kind: str, name: str, text: str) -> tuple[Item, ...]:
    """Every directive and every command of a script, carried or left."""
    source = Source(name, "\n".join(line.rstrip("\r") for line in text.split("\n")))
    items: list[Item] = []
    commands = False
    for number, line in _lines(source.text):
        span = Span(source, number, 1, number, max(2, len(source.line(number)) + 1))
        directive = re.match(r"#(?:SBATCH|BSUB)\b(.*)", line)
        if directive and commands:
            items.append(
                Left(line.strip(), span, "a directive after the first command, which the scheduler does not read")
            )
        elif directive:
            items += _directive(kind, directive[1], span)
        elif line.strip() and not line.startswith("#"):
            commands = True
            items += _command(line.strip(), span)
    return tuple(items)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line, those that a backslash continues as one."""
    held, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        start = start or number
        if line.endswith("\\") and not line.startswith("#"):
            held += line[:-1] + " "
            continue
        yield start, held + line
        held, start = "", 0


def _words(text: str) -> list[str] | None:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return None


def _directive(kind: str, text: str, span: Span) -> Iterator[Item]:
    words = _words(text)
    if words is None:
        yield Left(text.strip(), span, "its quotes do not close")
        return
    for option, value in _options(words, single=kind == "lsf"):
        name = SLURM_SHORT.get(option, option) if kind == "slurm" else option
        yield from _option(SLURM if kind == "slurm" else LSF, name, value, span)


def _options(words: list[str], single: bool = False) -> Iterator[tuple[str, str]]:
    """Options with their values; a word that belongs to none stands for itself, without a value."""
    ahead = list(words)
    while ahead:
        word = ahead.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            yield word, ""
            continue
        if not word.startswith("--") and not single and len(name) > 1 and not equals:
            name, value = name[0], name[1:]  # -N2
        elif single and equals:
            name, value = word.lstrip("-"), ""
        if not value and not equals and ahead and not ahead[0].startswith("-"):
            value = ahead.pop(0)
        yield name, value


def _option(table: _Table, name: str, value: str, span: Span) -> Iterator[Item]:
    source = f"{name} {value}".strip()
    if name in UNNEEDED:
        yield Left(source, span, _OURS, deliberate=True)
    elif "$" in value:
        yield Left(source, span, "the shell's variables are not known here")
    elif name not in table:
        yield Left(source, span, "the spec has no such key")
    else:
        made = table[name](value)
        if isinstance(made, str):
            yield Left(source, span, made)
        else:
            yield from (Carried(path, item, span, source) for path, item in made)
            yield from _beside_the_number(name, value, span)


def _beside_the_number(name: str, value: str, span: Span) -> Iterator[Item]:
    """What a request for GPUs says but their number: a card, by a name of that scheduler's, or how they are shared."""
    if name in ("gres", "gpus-per-node", "gpus"):
        said = [part for part in value.split(":") if part != "gpu" and not part.isdecimal()]
    elif name == "gpu":
        said = [part for part in re.split(r"[:/ ]", value) if part and not re.fullmatch(r"num=\d+", part)]
    else:
        said = []
    for part in said:
        known = name != "gpu" or part.startswith("gmodel=")
        why = "a name of the scheduler's for a card: say it as `resources.gpu`" if known else "the spec has no such key"
        yield Left(part, span, why)


def _command(line: str, span: Span) -> Iterator[Item]:
    words = _words(line)
    if words is None:
        yield Left(line, span, _COMMAND)
    elif words[:2] == ["module", "load"] or words[:1] == ["ml"]:
        names = words[2:] if words[0] == "module" else words[1:]
        yield Carried("environment.modules", names, span, line)
    elif words[:2] == ["conda", "activate"] and len(words) == 3:
        yield Carried("environment.conda", words[2], span, line)
    elif (
        words[:1] in (["source"], ["."]) and len(words) == 2 and words[1].endswith("/bin/activate") and "$" not in line
    ):
        yield Carried("environment.venv", words[1].removesuffix("/bin/activate"), span, line)
    elif words[:1] == ["export"] and len(words) == 2 and "=" in words[1]:
        yield _variable(words[1], line, span)
    elif line.startswith("set ") or line in ("wait", "exit 0"):
        yield Left(line, span, _OURS, deliberate=True)
    elif _LAUNCH.match(line):
        yield from _launch(words, span)
    else:
        yield Left(line, span, _COMMAND)


def _variable(word: str, line: str, span: Span) -> Item:
    name, _, value = word.partition("=")
    if looks_secret(name, value):
        return Left(
            f"export {name}", span, f"it looks like a secret, which is never copied: `secrets: [{name}]` names it"
        )
    why = launch_variables.reason(name)
    if why is not None:
        return Left(line, span, f"it {why}")
    if "$" in value:
        return Left(line, span, "the shell's variables are not known here")
    return Carried(f"environment.variables.{name}", value, span, line)


def _launch(words: list[str], span: Span) -> Iterator[Item]:
    """The launcher's own options that the spec knows; the command itself is ratc's."""
    for name, value in _options(words):
        key = name.replace("-", "_")
        if key in LAUNCHER and "$" not in value:
            yield from _option(LAUNCHER, key, value, span)
        elif key in ("config_file", "deepspeed", "deepspeed_config") and value:
            yield Left(f"{name} {value}", span, "give that file to `ratc import` too", deliberate=True)
    yield Left(" ".join(words), span, "ratc writes the command; what the program itself is told belongs into the spec")
