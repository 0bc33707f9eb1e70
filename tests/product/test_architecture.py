"""The rules for imports: which module may import which, read from the sources, so that data flows one way."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.places import ROOT, TESTS

PACKAGE = ROOT / "ratc"
#: Modules that several stages share: types and small tools, no stage among them.
SHARED = {
    "diagnostics",
    "plan",
    "resources",
    "secrets",
    "yaml/write",
    "shell",
    "units",
    "markup",
    "catalog",
    "corrections",
    "console",
    "elastic",
}
SHARED |= {"own_code/callables", "own_code/signatures", "spec/keys"}
#: The only modules that may touch files, the environment, the clock or other processes.
WORLDLY = {"cli", "workflow", "fitting", "compiled", "study", "probe", "consumers", "tracing", "emit", "resources"}
WORLDLY |= {
    "cache_folder",
    "files",
    "own_code/digests",
    "own_code/trust",
    "scheduler/client",
    "scheduler/history",
    "scheduler/wait",
}
WORLDLY |= {"spec/generate", "secrets/generate", "console", "__main__"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it, under its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py"))


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def known_to(path: Path) -> set[tuple[str, str]]:
    """The room, and the room with the module in it, of everything of ratc that a file imports."""
    names = [name.split(".") for name in imports(path) if name.startswith("ratc.")]
    # `from ratc.spec import keys` names its room, too; `from ratc import rules` names a room alone.
    inside = {name[1] for name in names if len(name) > 2}
    return {(name[1], "/".join(name[1:3])) for name in names if len(name) > 2 or name[1] not in inside}


def test_the_reader_of_imports_finds_modules_and_imports():
    assert len(sources()) > 40
    assert "ratc.plan" in imports(PACKAGE / "explain.py")


@pytest.mark.parametrize("package", ["torch", "accelerate", "deepspeed", "ratc_runtime"])
def test_the_compiler_never_imports_the_runtime_or_torch(package):
    # The two small readers run in a process of their own, as Accelerate's and DeepSpeed's stand-ins.
    readers = {"read_accelerate.py", "read_deepspeed.py"}
    users = [path.name for path in sources() if any(name.split(".")[0] == package for name in imports(path))]
    assert set(users) <= readers


def test_the_runtime_never_imports_the_compiler():
    paths = sources(ROOT / "runtime")
    assert paths
    assert not [path for path in paths if any(name.split(".")[0] == "ratc" for name in imports(path))]


@pytest.mark.parametrize("folder", ["rules", "resolve", "render"])
def test_modules_of_one_stage_never_import_each_other(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.stem in ("__init__", "context"):
            continue
        known = {name for name in imports(path) if name.startswith(f"ratc.{folder}.")}
        assert {name.split(".")[2] for name in known} <= {"context"}, path


#: What each room, or module without one, may know besides itself and what all share.
MAY_KNOW = {
    "files": set(),
    "cache_folder": {"files"},
    "program": set(),
    "own_code": {"files", "program"},
    "spec": set(),
    "yaml": set(),
    "kinds": {"yaml"},
    "schema": {"yaml"},
    "layers": {"yaml", "schema"},
    "sweep": {"yaml", "layers", "schema"},
    "tuning": {"yaml", "layers", "schema", "sweep"},
    "memory": set(),
    "parts": {"memory"},
    "rules": {"memory", "parts", "program"},
    "facts": set(),
    "rates": set(),
    "resolve": {"memory", "parts", "program", "rates"},
    "elastic_plan": {"resolve", "memory"},
    "compiler": {
        *{"yaml", "kinds", "layers", "schema", "sweep", "tuning", "rules"},
        *{"facts", "resolve", "elastic_plan", "memory", "program"},
    },
    "targets": {"program", "sweep", "tuning"},
    "emit": {"targets", "files"},
    "explain": set(),
    "comparison": {"program"},
    "render": {"comparison", "explain"},
    "importers": {"yaml", "schema", "program"},
    "consumers": {"yaml", "targets"},
    "probe": {"facts"},
    "scheduler": {"yaml", "files"},
    "why": {"program", "scheduler"},
    "timing": {"memory"},
    "tracing": {"memory", "cache_folder", "files", "own_code"},
    "fitting": {
        *{"comparison", "facts", "files", "memory", "own_code", "program"},
        *{"render", "resolve", "timing", "tracing"},
    },
    "compiled": {"emit", "files", "layers", "scheduler", "targets", "yaml"},
}
#: The surfaces: what they do not know. `workflow/tune.py` runs a study, whose trials `workflow/` compiles.
NEVER_KNOW = {
    "workflow": {"api", "cli", "lsp"},
    "api": {"cli", "lsp", "study"},
    "study": {"api", "cli", "lsp"},
    "lsp": {"api", "cli", "study"},
}


def test_rooms_import_only_the_rooms_below_them():
    known: dict[str, set[str]] = {}
    for path in sources():
        found = {room for room, whole in known_to(path) if room not in SHARED and whole not in SHARED}
        known.setdefault(stage(path), set()).update(found - {stage(path), "__version__"})
    rooms = set(known) - SHARED - {"cli", "__init__", "__main__"}
    assert rooms == set(MAY_KNOW) | set(NEVER_KNOW), "a room without a line, or a line without a room"
    for name, may in MAY_KNOW.items():
        assert (name, known[name] - SHARED) == (name, may), "what a line allows and what is imported differ"
    for name, never in NEVER_KNOW.items():
        assert not known[name] & never, name


def test_the_core_of_the_runtime_does_not_know_what_stands_on_it():
    runtime = ROOT / "runtime" / "ratc_runtime"
    above = {"commands", "extras", "integrations", "trace", "program", "debug"}
    users = {
        (path.relative_to(runtime).parts[0], name.split(".")[1])
        for path in sources(runtime)
        for name in imports(path)
        if name.startswith("ratc_runtime.") and path.relative_to(runtime).parts[0] not in above
    }
    # The loop prunes, quantizes and checks steps if its spec asks for it; `ratc_runtime.plan` is for own scripts.
    assert {pair for pair in users if pair[1] in above} == {
        ("training", "extras"),
        ("training", "debug"),
        ("__init__.py", "program"),
    }


def test_only_edge_modules_import_os_time_and_randomness():
    worldly = {"os", "subprocess", "time", "datetime", "shutil", "tempfile", "socket", "pathlib", "random"}
    for path in sources():
        if not {stage(path), module(path)} & WORLDLY:
            assert not {name.split(".")[0] for name in imports(path)} & worldly, path


def graph(folder: Path) -> dict[str, set[str]]:
    """Which module of a package imports which; what only type checkers see does not count."""
    paths = {".".join(path.relative_to(folder.parent).with_suffix("").parts): path for path in sources(folder)}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        known = imports_when_run(ast.parse(path.read_text()))
        found[name] = {module for module in known if module in modules} - {name}
    return found


def imports_when_run(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        found |= imports_when_run(node)
    return found


@pytest.mark.parametrize("package", [PACKAGE, ROOT / "runtime" / "ratc_runtime"], ids=lambda path: path.name)
def test_imports_form_no_circle(package):
    from graphlib import TopologicalSorter

    found = graph(package)
    # A package that hands on what its modules define is known to them by its name alone.
    inner = {name: {other for other in known if not name.startswith(f"{other}.")} for name, known in found.items()}
    TopologicalSorter(inner).prepare()  # raises CycleError, with the circle


def test_only_the_command_line_imports_commands():
    for path in sources():
        if stage(path) not in ("cli", "__main__"):
            assert not [name for name in imports(path) if name.startswith("ratc.cli")], path


def test_only_the_command_line_imports_click():
    for path in sources():
        known = {name.split(".")[0] for name in imports(path)}
        assert "argparse" not in known, path
        assert "click" not in known or stage(path) == "cli", path


def test_every_room_has_a_docstring():
    for package in (PACKAGE, ROOT / "runtime" / "ratc_runtime"):
        for folder in (path for path in package.iterdir() if list(path.glob("*.py"))):
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_command_line_and_compiler_import_no_heavy_package():
    for name, heavy in (("cli", {"jinja2", "pydantic", "pynvml"}), ("compiler.py", {"jinja2", "pydantic", "pynvml"})):
        target = PACKAGE / name
        for path in sources(target) if target.is_dir() else [target]:
            assert not {module.split(".")[0] for module in imports(path)} & heavy, path


@pytest.mark.parametrize("template", sorted((ROOT / "templates").glob("*.j2")), ids=lambda path: path.name)
def test_templates_hold_no_arithmetic(template):
    import jinja2

    from ratc.shell import environment

    allowed = (jinja2.nodes.Filter, jinja2.nodes.Getattr, jinja2.nodes.Name, jinja2.nodes.Const, jinja2.nodes.Call)
    for node in environment().parse(template.read_text()).find_all(jinja2.nodes.Expr):
        assert isinstance(node, (*allowed, jinja2.nodes.Tuple, jinja2.nodes.TemplateData)), (template.name, node)


def test_unit_tests_mirror_the_sources():
    """`<room>/test_<name>.py` tests the module `<name>` of that room, `test_<name>_<aspect>.py` a part of what it does,
    and `test_<room>.py` the room as a whole."""
    packages = {"ratc": PACKAGE, "ratc_runtime": ROOT / "runtime" / "ratc_runtime"}
    for path in (TESTS / "unit").rglob("test_*.py"):
        package, *rooms = path.parent.relative_to(TESTS / "unit").parts
        room = packages[package].joinpath(*rooms)
        assert room.is_dir(), f"{path}: the sources have no such room"
        words = path.stem.split("_")[1:]
        names = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
        assert names & {room.name, *(module.stem for module in room.glob("*.py"))}, f"{path}: no such module"


def test_every_test_module_lies_in_a_package():
    """Folders of tests without an `__init__.py` share one space of names: pytest refuses to collect the second."""
    assert not list(TESTS.glob("test_*.py"))
    assert not [path for path in TESTS.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
