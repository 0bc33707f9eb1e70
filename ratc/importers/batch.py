"""sbatch and bsub scripts: their directives, the environment that they set up, and their launcher's options.

Rules: sbatch(1) of Slurm 23 to 25; bsub(1) of LSF 10.1. Directives end at the first command, as the schedulers have it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ratc.catalog import launch_variables
from ratc.diagnostics import Source, Span
from ratc.importers import launch, shell, sizes
from ratc.importers.model import OF_A_SECRET, Carried, Item, Left, is_masked, marked, unmarked
from ratc.importers.sizes import Option
from ratc.secrets import scripts
from ratc.units import slurm_time

_Made = list[tuple[str, object]] | str
_OURS = "ratc writes it itself"
_PROGRAM = "a program: if it is your own and trains, name it as `entrypoint`"
_COMMAND = "a command: if the job needs it, put it into `environment.setup`"
#: The same in a script without a program that is known.
_OR_PROGRAM = (
    "a command: if it is your own and trains, name it as `entrypoint: {command: […]}`; if the job needs it, put it "
    "into `environment.setup`"
)
_IN_CONTAINER = (
    "a program in a container: name the container as `environment.container`, and your own program as `entrypoint`"
)
_LAUNCH = re.compile(r"^(?:exec )?(?:\S*/)?(?:srun|mpirun|jsrun|torchrun|accelerate|deepspeed|python3?)\b")


def slurm_walltime(text: str) -> str | None:
    """Return ``D-HH:MM:SS`` for a walltime of Slurm: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None for others."""
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
    return [("resources.walltime", walltime)] if walltime else "it is not a time that ratc can read"


def _mem(text: str) -> _Made:
    match = re.fullmatch(r"(\d{1,9})([KMGT]?)B?", text.upper())
    if match and not int(match[1]):
        return "0 asks Slurm for all memory of a node; set `resources.memory` to that amount"
    return [("resources.memory", f"{match[1]}{match[2] or 'M'}B")] if match else "it is not a size that ratc can read"


def _lsf_time(text: str) -> _Made:
    match = re.fullmatch(r"(?:(\d+):)?(\d+)(?:/.*)?", text)
    return [("resources.walltime", slurm_time(int(match[1] or 0) * 3600 + int(match[2]) * 60))] if match else "no time"


def _text(path: str) -> Callable[[str], _Made]:
    return lambda text: [(path, text)]


def _number(path: str) -> Callable[[str], _Made]:
    return lambda text: [(path, int(text))] if text.isdecimal() else "it is not a whole number"


def _name(text: str) -> _Made:
    return (
        [("experiment_name", text)]
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
        else [("resources.job_name", text)]
    )


def _lsf_name(text: str) -> _Made:
    name, bracket, _ = text.partition("[")
    return f"an array of jobs, called {name}; in a spec, `sweep` makes an array" if bracket else _name(text)


_SITE = "its unit and scope depend on the site; set `resources.memory`, the memory of a node"
_Table = Mapping[str, Callable[[str], _Made]]
SLURM: _Table = {
    "job-name": _name,
    "time": _time,
    "partition": _text("resources.partition"),
    "account": _text("resources.account"),
    "qos": _text("resources.qos"),
    "mem": _mem,
}
SLURM_SHORT = {"J": "job-name", "N": "nodes", "t": "time", "p": "partition", "A": "account", "q": "qos", "G": "gpus"}
SLURM_SHORT |= {"c": "cpus-per-task", "n": "ntasks", "o": "output", "e": "error", "tasks-per-node": "ntasks-per-node"}
LSF: _Table = {
    "J": _lsf_name,
    "q": _text("resources.queue"),
    "P": _text("resources.account"),
    "W": _lsf_time,
    "nnodes": _number("resources.nodes"),
    "M": lambda _: _SITE,
}
#: Programs whose scripts are read as bash.
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "zsh"))
#: Directives between the parts of a heterogeneous job.
_SEVERAL = frozenset(("hetjob", "packjob"))
_PARTS = "a job of several parts: a run has nodes of one kind, which `resources` describes"
#: Options of bsub that add to one another; of all others the last counts.
ADDED = frozenset("R")
#: Options that ratc works out for itself.
UNNEEDED = frozenset(("output", "error", "signal", "requeue", "open-mode", "o", "oo", "e", "eo", "cwd"))
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
    """Return every directive and every command of a script, carried or left. If one repeats, the last counts."""
    text = "\n".join(line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n"))
    text = shell.without_data(text)
    source = Source(name, scripts.shown(text))
    lines = source.text.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"), len(lines))
    items: list[Item] = []
    options: list[Option] = []
    for number, line in enumerate(lines, 1):
        directive = re.match(r"#(?:SBATCH|BSUB)\b(.*)", line)
        if directive and number > first:
            why = "a directive after the first command, which the scheduler does not read"
            items.append(Left(line.strip(), _span(source, number), why))
        elif directive:
            for item in _directive(kind, directive[1], _span(source, number)):
                if isinstance(item, Left):
                    items.append(item)
                else:
                    options.append(item)
    items += _requested(kind, options)
    done = _Environment()
    language = _language(lines[0])
    if language not in _SHELLS:
        items.append(Left(lines[0], _span(source, 1), f"a script of {language}: its commands are not those of bash"))
    for command in shell.commands(marked(text, source.text)) if language in _SHELLS else ():
        items += _command(command, _span(source, command.line), done)
    items += launch.entrypoint(done.launches)
    items += done.items()
    if not any(isinstance(item, Carried) and item.path.startswith("entrypoint.") for item in items):
        items = [
            replace(one, why=_OR_PROGRAM) if isinstance(one, Left) and one.why == _COMMAND else one for one in items
        ]
    return tuple(sorted(map(unmarked, items), key=lambda item: item.span.line))


def _language(line: str) -> str:
    """The program that a script's first line names; `sh` if it names none."""
    words = line.removeprefix("#!").split() if line.startswith("#!") else []
    program = words[0].rpartition("/")[2] if words else "sh"
    if program == "env":
        program = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "sh")
    return program.rpartition("/")[2]


def _span(source: Source, number: int) -> Span:
    return Span(source, number, 1, number, max(2, len(source.line(number)) + 1))


def _requested(kind: str, options: list[Option]) -> Iterator[Item]:
    """Yield the items of all directives together."""
    last: dict[str, Option] = {}
    apart = set(_told_by_several(options)) if kind == "slurm" else set()
    for option in options:
        if option.name in apart:
            yield Left(option.source, option.span, _PARTS)
            continue
        former = last.get(option.name)
        if former and option.name in ADDED and kind == "lsf":
            option = Option(option.name, f"{former.value} {option.value}", former.span)
        elif former:
            why = f"{option.span.place} sets it again, and the last one wins"
            yield Left(former.source, former.span, why, deliberate=True)
        last[option.name] = option
    counted, table = (sizes.SLURM, SLURM) if kind == "slurm" else (sizes.LSF, LSF)
    known = {name: option for name, option in last.items() if name in counted and "$" not in option.value}
    for option in last.values():
        if option.name not in known:
            yield from _option(table, option.name, option.value, option.span)
    if kind == "slurm" and last.keys() & _SEVERAL:
        yield from (Left(option.source, option.span, _PARTS) for option in known.values())
    else:
        yield from sizes.slurm(known) if kind == "slurm" else sizes.lsf(known)


def _told_by_several(options: list[Option]) -> Iterator[str]:
    """Yield the options that several parts of a heterogeneous job have, each with a value of its own."""
    part, told = 0, dict[str, int]()
    for option in options:
        part += option.name in _SEVERAL
        if told.setdefault(option.name, part) != part and option.name not in UNNEEDED | _SEVERAL:
            yield option.name


def _words(text: str) -> list[str] | None:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return None


def _directive(kind: str, text: str, span: Span) -> Iterator[Option | Left]:
    words = _words(text)
    if words is None:
        yield Left(text.strip(), span, "its quotes do not close")
        return
    for option, value in _options(words, single=kind == "lsf"):
        if not option and kind == "slurm" and value in _SEVERAL:
            option, value = value, ""
        if not option:
            yield Left(value, span, "not an option: a comment begins with `#`")
            continue
        yield Option(SLURM_SHORT.get(option, option) if kind == "slurm" else option, value, span)


def _options(words: list[str], single: bool = False) -> Iterator[tuple[str, str]]:
    """Options with their values; a word that belongs to none is the value of an option without a name."""
    ahead = list(words)
    while ahead:
        word = ahead.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not word.strip("-"):
            yield "", word
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
        yield Left(source, span, "the variables of the shell are not known here")
    elif name not in table:
        yield Left(source, span, "the spec has no such key")
    else:
        made = table[name](value)
        if isinstance(made, str):
            yield Left(source, span, made)
        else:
            yield from (Carried(path, item, span, source) for path, item in made)


class _Environment:
    """The environment of the script, with the last value of each setting."""

    def __init__(self) -> None:
        self._last: dict[str, Carried] = {}
        self._left: list[Left] = []
        self._shell: dict[str, Carried] = {}
        self.launches: list[launch.Launch] = []

    def add(self, item: Carried) -> None:
        """Take a value; modules are gathered."""
        former = self._last.get(item.path)
        if former and item.path == _MODULES:
            item = Carried(item.path, [*former.value, *item.value], former.span, former.source)
        elif former:
            self.drop(item.path, f"{item.span.place} sets it again, and the last one wins")
        self._last[item.path] = item

    def assign(self, item: Carried) -> None:
        """Take a value that the script's own shell has: it is carried if the variable is exported, now or later."""
        if item.path in self._last:
            self.add(item)
            return
        self.forget(item.path)
        self._shell[item.path] = item

    def export(self, path: str) -> bool:
        """Carry the value that the shell has of a variable; tell whether it is known."""
        item = self._shell.pop(path, None)
        if item is not None:
            self.add(item)
        return path in self._last

    def forget(self, path: str) -> None:
        """Leave a value that was never exported."""
        item = self._shell.pop(path, None)
        if item is not None:
            self._left.append(Left(item.source, item.span, _COMMAND))

    def unload(self, names: list[str]) -> None:
        """Forget modules, by their names with or without the version."""
        former = self._last.get(_MODULES)
        if former is None:
            return
        kept = [one for one in former.value if one not in names and one.split("/")[0] not in names]
        self._last[_MODULES] = Carried(_MODULES, kept, former.span, former.source)
        if not kept:
            self.drop(_MODULES, "all modules are unloaded later")

    def drop(self, path: str, why: str) -> None:
        """Forget a value."""
        former = self._last.pop(path, None)
        if former:
            self._left.append(Left(former.source, former.span, why, deliberate=True))

    def items(self) -> Iterator[Item]:
        """Yield the items after the last command."""
        for path in list(self._shell):
            self.forget(path)
        yield from self._last.values()
        yield from self._left


_MODULES = "environment.modules"


def _because(reason: str, help: str) -> str:
    """The help with the reason in brackets behind its first words, which say what it is about."""
    what, _, rest = help.partition(":")
    return f"{what} ({reason}):{rest}" if reason else help


def _command(command: shell.Command, span: Span, done: _Environment) -> Iterator[Item]:
    line, words = command.text, list(command.words or ())
    if not words or command.unsure:
        help = _PROGRAM if _LAUNCH.match(line) or launch.is_launch(words) else _COMMAND
        yield Left(line, span, _because(command.unsure, help))
    elif command.apart and not launch.is_launch(words):
        yield Left(line, span, _because(command.apart, _COMMAND))
    elif words[0] in ("module", "ml"):
        yield from _modules(command, span, done)
    elif words in (["deactivate"], ["conda", "deactivate"]):
        done.drop("environment.conda" if len(words) == 2 else "environment.venv", f"{span.place} leaves it")
        yield Left(line, span, _COMMAND)
    elif words[:2] == ["conda", "activate"] and len(words) == 3 and not command.dynamic:
        done.add(Carried("environment.conda", words[2], span, line))
    elif (venv := _venv(words)) and (not command.dynamic or venv.startswith("~/")):
        done.add(Carried("environment.venv", venv, span, line))
    elif words[:1] == ["export"] and all(_NAMED.fullmatch(word) for word in words[1:]):
        yield from _variables(command, span, done)
    elif len(words) == 1 and (match := re.fullmatch(r"([A-Za-z_]\w*)(\+?=)(.*)", words[0], re.S)):
        yield from _assignment(command, span, done, *match.groups())
    elif words[0] == "unset" or words[:2] == ["export", "-n"]:
        for name in words[1:]:
            done.drop(f"environment.variables.{name}", f"{span.place} unsets it")
        yield Left(line, span, _COMMAND)
    elif words[0] == "set" or line in ("wait", "exit 0"):
        yield Left(line, span, _OURS, deliberate=True)
    elif launch.is_launch(words):
        yield from _launch(command, span, done)
    elif launch.starts_container(words):
        yield Left(line, span, _IN_CONTAINER)
    else:
        yield Left(line, span, _COMMAND)


#: A word of `export` that names a variable.
_NAMED = re.compile(r"[A-Za-z_]\w*(=.*)?", re.S)
#: What `ml` does beside loading.
_MODULE_COMMANDS = re.compile(
    "add|rm|del|switch|reset|unload|purge|swap|list|avail|spider|use|unuse|save|restore|show|try-load"
)


def _modules(command: shell.Command, span: Span, done: _Environment) -> Iterator[Item]:
    """Modules that are loaded are carried, those that are unloaded again are not."""
    words = list(command.words or ())
    does, names = (words[1], words[2:]) if words[0] == "module" and len(words) > 1 else ("load", words[1:])
    if words[0] == "ml" and names and _MODULE_COMMANDS.fullmatch(names[0].replace("load", "add", 1)):
        does, names = names[0], names[1:]
    plain = bool(names) and not command.dynamic and not any(re.search(r"^[-+]|[*?\[{]", name) for name in names)
    if does in ("load", "add") and plain:
        done.add(Carried(_MODULES, names, span, command.text))
        return
    if does in ("purge", "reset", "restore"):
        done.drop(_MODULES, f"{span.place} unloads all modules")
    elif does in ("unload", "rm", "del"):
        done.unload(names)
    elif does in ("swap", "switch"):
        done.unload(names[:1] if len(names) > 1 else [name.split("/")[0] for name in names])
    yield Left(command.text, span, _COMMAND)


def _venv(words: list[str]) -> str:
    """The virtual environment that `source PATH/bin/activate` enters; "" for another command.

    A home folder in it is `~`, as in a spec.
    """
    if len(words) != 2 or words[0] not in ("source", ".") or not words[1].endswith("/bin/activate"):
        return ""
    path = re.sub(r"^\$(HOME|\{HOME\})/", "~/", words[1]).removesuffix("/bin/activate")
    return "" if re.search(r"[$`]|^~[^/]|.~", path) else path


def _variables(command: shell.Command, span: Span, done: _Environment) -> Iterator[Item]:
    words = command.words or ()
    for number, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        path = f"environment.variables.{name}"
        source = command.text if len(words) == 2 else f"export {word}"
        if not equals:
            known = done.export(path)
            yield Left(source, span, "its value was copied" if known else _COMMAND, deliberate=known)
            continue
        done.forget(path)
        if is_masked(value):
            done.drop(path, f"{span.place} sets it again, to a secret")
            yield Left(source, span, OF_A_SECRET)
        elif number in command.dynamic:
            done.drop(path, f"{span.place} sets it again, to an unknown value")
            yield Left(source, span, "the variables of the shell are not known here")
        elif (item := launch.of_launcher(name, source, span)) is not None:
            yield item
        else:
            done.add(Carried(path, value, span, source))


def _assignment(
    command: shell.Command, span: Span, done: _Environment, name: str, sign: str, value: str
) -> Iterator[Item]:
    """`A=1`: the environment has it only if the variable is exported."""
    path = f"environment.variables.{name}"
    known = sign == "=" and not command.dynamic and not is_masked(value)
    if known and launch_variables.reason(name) is None:
        done.assign(Carried(path, value, span, command.text))
        return
    done.forget(path)
    done.drop(path, f"{span.place} sets it again, to an unknown value")
    yield Left(command.text, span, OF_A_SECRET if is_masked(value) else _COMMAND)


def _launch(command: shell.Command, span: Span, done: _Environment) -> Iterator[Item]:
    """The launcher's own options that the spec knows; the program is looked at when all are known."""
    done.launches.append(launch.split(command, span))
    for name, value in _options(list(done.launches[-1].own)):
        key = name.replace("-", "_")
        if key in LAUNCHER and "$" not in value:
            yield from _option(LAUNCHER, key, value, span)
        elif key in ("config_file", "deepspeed", "deepspeed_config") and value:
            yield Left(f"{name} {value}", span, "give that file to `ratc import` too", deliberate=True)
