"""A checker of LSF 10.1 job scripts: LSF cannot be installed here, so what is emitted is held to what IBM documents.

It reads the `#BSUB` lines as bsub(1) and "Resource requirement strings" describe them, and looks in the shell part for
the known ways in which jobs over several hosts go wrong. It is stricter than LSF where LSF's answer depends on the
site: GPUs are counted per host, sections of `-R` are named, every option stands once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

TIME = r"(\d+:)?\d+"
SIZE = r"\d+(\.\d+)?([KMGTPE]B?)?"
ANYTHING = r".+"
#: Options with a value, and its form (bsub(1)). What only the cluster can judge, such as a queue, may be anything.
VALUES = {
    "-J": r"[^\[\]]+(\[\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*\](%\d+)?)?",
    "-n": r"[1-9]\d*(,[1-9]\d*)?",
    "-R": ANYTHING,
    "-gpu": r"-|[^:]+(:[^:]+)*",
    "-W": rf"{TIME}(/\S+)?",
    "-We": rf"{TIME}(/\S+)?",
    "-M": SIZE,
    "-v": SIZE,
    "-wt": TIME,
    "-wa": r"[A-Z0-9]+|/.+",
    "-Q": r"(all|~?\d+|EXCLUDE\(\d+\))( (all|~?\d+|EXCLUDE\(\d+\)))*",
    "-nnodes": r"[1-9]\d*",
    "-jsm": "y|n|d",
    **dict.fromkeys(("-q", "-P", "-G", "-app", "-sla", "-U", "-L", "-m", "-w", "-u", "-g"), ANYTHING),
    **dict.fromkeys(("-o", "-oo", "-e", "-eo", "-i", "-is", "-cwd", "-outdir", "-env", "-alloc_flags"), ANYTHING),
}
FLAGS = {"-r", "-rn", "-x", "-N", "-B", "-H", "-ar"}
SPAN = r"hosts=-?1|ptile=[1-9]\d*|block=[1-9]\d*|stripe(=[1-9]\d*)?"
RUSAGE = rf"[a-z]\w*={SIZE}(/(job|task|host))?"
#: The parts of -gpu ("Submitting jobs that require GPU resources").
GPU = {
    "num": r"[1-9]\d*/host",
    "mode": "shared|exclusive_process",
    "mps": r"yes|no|per_socket|per_gpu",
    "j_exclusive": "yes|no",
    "aff": "yes|no",
    "block": "yes|no",
    "gpack": "yes|no",
    "glink": "yes|nvlink|xgmi",
    "gvendor": "nvidia|amd",
    "gmodel": r"[\w./-]+",
    "gmem": SIZE,
    "gtile": r"!|[1-9]\d*",
    "mig": r"\d+(/\d+)?",
}
#: What differs between tasks: expanded in the batch shell it is the batch host's, or nothing.
OF_A_TASK = r"\$\{?(LSF_PM_TASKID|JSM_NAMESPACE_RANK|PMIX_RANK|OMPI_COMM_WORLD_RANK|HOSTNAME)\b|(\$\(|`)hostname\b"
RANK = r"--(?:machine|node)[_-]rank[= ]\"?"


def problems(script: str) -> list[str]:
    """What is wrong with a job script, a sentence each; nothing for a right one."""
    options: dict[str, list[str]] = {}
    found = list(_directives(script, options))
    if found:  # what they mean together cannot be said
        return found
    found += _requirements(options.get("-R", []), options)
    found += _together(options)
    body = _code(script)
    found += _body(body)
    found += _signals_and_exits(body, options)
    return found


def _directives(script: str, options: dict[str, list[str]]) -> Iterator[str]:
    """Read every `#BSUB` line into `options`."""
    for number, line in enumerate(script.splitlines(), 1):
        if not line.startswith("#BSUB"):
            continue
        try:
            words = shlex.split(line.removeprefix("#BSUB"))
        except ValueError as error:
            yield f"line {number}: {error}"
            continue
        while words:
            option = words.pop(0)
            if option in FLAGS:
                options.setdefault(option, []).append("")
            elif option not in VALUES:
                yield f"line {number}: `{option}` is no option that bsub documents"
                break
            elif not words:
                yield f"line {number}: {option} has no value"
            else:
                value = words.pop(0)
                if not re.fullmatch(VALUES[option], value):
                    yield f"line {number}: {option} cannot be `{value}`"
                options.setdefault(option, []).append(value)


def _requirements(requirements: list[str], options: dict[str, list[str]]) -> Iterator[str]:
    """The sections of the resource requirement strings."""
    seen = set()
    slots = int(options.get("-n", ["1"])[0].split(",")[0])
    for requirement in requirements:
        sections = re.findall(r"(\w+)\[([^\[\]]*)\]", requirement)
        if re.sub(r"\w+\[[^\[\]]*\]", "", requirement).strip():
            yield f"-R `{requirement}` is not made of sections name[…]"
        for name, content in sections:
            if name in seen:
                yield f"-R has {name}[…] twice"
            seen.add(name)
            if name not in ("select", "order", "rusage", "span", "same", "cu", "affinity"):
                yield f"-R has no section {name}[…]"
            elif not content:
                yield f"-R has nothing in {name}[]"
            elif name == "span":
                if not re.fullmatch(SPAN, content):
                    yield f"span[{content}] is none of the documented forms"
                tile = re.fullmatch(r"ptile=(\d+)", content)
                if tile and (int(tile[1]) > slots or slots % int(tile[1])):
                    yield f"span[{content}] does not divide the {slots} slots of -n"
            elif name == "rusage":
                for part in re.split("[,:]", content):
                    if "ngpus_" in part or not re.fullmatch(RUSAGE, part):
                        yield f"rusage[{content}]: `{part}` is not name=amount"
    if slots > 1 and "span" not in seen:
        yield "-n without span[…]: LSF chooses how many hosts there are"


def _together(options: dict[str, list[str]]) -> Iterator[str]:
    """What options mean for each other."""
    for option, given in options.items():
        if len(given) > 1:
            yield f"{option} is given {len(given)} times"
    first = {option: given[0] for option, given in options.items()}
    for option in ("-J", "-o"):
        if option not in first:
            yield f"there is no {option}"
    if ("-n" in first) == ("-nnodes" in first):
        yield "exactly one of -n and -nnodes says how large the job is"
    for part in first.get("-gpu", "-").split(":"):
        key, _, value = part.partition("=")
        if part != "-" and not re.fullmatch(GPU.get(key, "(?!)"), value):
            yield f"-gpu: `{part}` is not documented, or means something else at some sites"
    if "-gpu" in first and "num=" not in first["-gpu"]:
        yield "-gpu without num="
    if ("-wt" in first) != ("-wa" in first):
        yield "-wt and -wa mean something only together"
    elif "-wt" in first and "-W" in first and _minutes(first["-wt"]) >= _minutes(first["-W"]):
        yield "the warning of -wt comes before the job starts"
    array = re.search(r"\[(.+)\]", first.get("-J", ""))
    if array and any(int(number) == 0 for number in re.findall(r"\d+", array[1])):
        yield "indices of an array begin with 1"
    if array and "%I" not in first.get("-o", "%I"):
        yield "all jobs of the array write the same file: -o has no %I"


def _minutes(time: str) -> int:
    hours, _, minutes = time.split("/")[0].rpartition(":")
    return int(hours or 0) * 60 + int(minutes)


def _code(script: str) -> list[str]:
    """The commands, one a line: no comments, continued lines joined, what stands in single quotes left out."""
    lines = []
    for line in script.replace("\\\n", " ").splitlines():
        kept, quote, before = "", "", " "
        for char in line:
            if char == "#" and not quote and before.isspace():
                break
            if quote != "'" and not (char == "'" and not quote):
                kept += char
            if char in "'\"" and (quote in ("", char)):
                quote = "" if quote else char
            before = char
        if kept.strip():
            lines.append(kept)
    return lines


def _body(code: list[str]) -> Iterator[str]:
    """Known faults of the shell part, line by line."""
    everything = "\n".join(code)
    for line in code:
        if re.search(r"\$\{?0\b|BASH_SOURCE", line):
            yield f"LSF runs a copy of the script, so its path leads nowhere: {line.strip()}"
        if re.search(r"\bCUDA_VISIBLE_DEVICES=", line):
            yield f"CUDA_VISIBLE_DEVICES is LSF's to set: {line.strip()}"
        if re.search(r"LSB_GPU_INFOS|\bSLURM_|\bsrun\b|\bscontrol\b", line):
            yield f"LSF has no such thing: {line.strip()}"
        if re.search(r"port[= ]\"?[1-9]\d{2,4}\b|rdzv[_-]endpoint[= ]\S*:\d+", line, re.IGNORECASE):
            yield f"jobs that share a host collide on a constant port: {line.strip()}"
        if re.search(r":-(localhost|127\.0\.0\.1)\}|\|\| echo (localhost|127\.0\.0\.1)", line):
            yield f"falling back to one host makes a world of each host: {line.strip()}"
        if re.search(r"(^|[\s;&|(])blaunch\s(?!-z\s)", line):
            yield f"blaunch without -z starts a task for each slot: {line.strip()}"
        elif re.search(r"(^|[\s;&|(])blaunch\s(?!-z\s+\S+\s+-no-shell\s)", line):
            yield f"without -no-shell a shell reads blaunch's command once more: {line.strip()}"
        if re.search(r"(^|[\s;&|(])(blaunch|jsrun)\s", line):
            if re.search(OF_A_TASK, line):
                yield f"expanded on the batch host, not on the task's: {line.strip()}"
            if re.search(RANK + r"\d", line):
                yield f"every host gets the same rank: {line.strip()}"
    if "LSB_DJOB_HOSTFILE" in everything and not re.search(r"\bawk\b|\buniq\b", everything):
        yield "LSB_DJOB_HOSTFILE has a line for each slot: take each host once, in LSF's order"
    if "LSB_HOSTS" in everything and not re.search("LSB_MCPU_HOSTS|LSB_DJOB_HOSTFILE", everything):
        yield "LSB_HOSTS is not set for large jobs"


def _signals_and_exits(code: list[str], options: dict[str, list[str]]) -> Iterator[str]:
    """A warning must be trapped, and a requeue asked for."""
    body = "\n".join(code)
    for signal in options.get("-wa", []):
        if not re.search(rf"\btrap\b.*\b{signal}\b", body):
            yield f"nothing traps the {signal} of -wa"
        elif not re.search(r"\bwait\b", body):
            yield "a trap runs only after the command in the foreground: start it with & and wait"
    codes = {code for given in options.get("-Q", []) for code in given.split()}
    used = set(re.findall(r"\bexit (99)\b", body))
    if used - codes:
        yield "exit 99 puts the job back into the queue only with -Q 99"
    if "99" in codes and not used:
        yield "-Q 99, and nothing exits with 99"
