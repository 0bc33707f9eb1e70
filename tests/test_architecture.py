"""Who may know whom: read from the sources' imports, so that data keeps flowing one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ratc"
#: Modules that several stages share: types and small tools, no stage among them.
SHARED = {"diagnostics", "plan", "resources", "redact", "yaml_text", "shell", "units", "tasks", "markup", "alloc_conf"}
SHARED |= {"callables", "corrections", "excerpt", "launch_variables", "secret_names", "secret_shapes", "signatures"}
#: The only modules that may touch files, the environment, the clock or other processes.
WORLDLY = {"cli", "probe", "consumers", "emit", "resources", "schema_gen", "secret_shapes_gen", "tracing", "processes"}
WORLDLY |= {"kept", "files", "own_code", "trust", "__main__"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, under its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py"))


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_there_is_something_to_read():
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
def test_siblings_never_import_each_other(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.stem in ("__init__", "context"):
            continue
        known = {name for name in imports(path) if name.startswith(f"ratc.{folder}.")}
        assert {name.split(".")[2] for name in known} <= {"context"}, path


def test_stages_know_only_what_comes_before_them():
    may = {
        "document": {"diagnostics"},
        "layers": {"document", "schema"},
        "schema": {"document"},
        "sweep": {"document", "layers", "schema"},
        "tuning": {"document", "layers", "schema", "sweep"},
        "parts": {"memory"},
        "rules": {"memory", "augmentations", "parts"},
        "facts": set(),
        "rates": set(),
        "resolve": {"memory", "parts", "rates"},
        "targets": {"sweep", "tuning"},
        "diff": {"explain"},
        "migrate": {"document", "schema"},
        "render": {"diff", "explain"},
        "memory": set(),
        "files": set(),
        "processes": {"files"},
        "kept": {"files"},
        "tracing": {"memory", "processes", "kept", "files", "own_code", "trust"},
        "trust": {"files"},
        "own_code": {"files"},
        "explain": set(),
        "submission": {"document"},
        "probe": {"facts", "submission"},
        "consumers": {"document", "targets", "kept"},
        "emit": {"targets", "files"},
        "compiler": {"document", "layers", "schema", "sweep", "tuning", "rules", "facts", "resolve", "memory"},
    }
    for path in sources():
        name = stage(path)
        if name not in may:
            continue
        known = {module.split(".")[1] for module in imports(path) if module.startswith("ratc.")} - {name, "__version__"}
        assert known - SHARED <= may[name], path


def test_only_the_edges_touch_the_world():
    worldly = {"os", "subprocess", "time", "datetime", "shutil", "tempfile", "socket", "pathlib", "random"}
    for path in sources():
        if stage(path) not in WORLDLY:
            assert not {name.split(".")[0] for name in imports(path)} & worldly, path


def test_heavy_packages_are_not_imported_before_they_are_needed():
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


def test_no_two_modules_of_the_tests_have_one_name():
    """Folders of tests without an `__init__.py` share one space of names: pytest refuses to collect the second."""
    paths = [path for path in (ROOT / "tests").glob("*/*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.stem for path in paths]
    assert sorted(names) == sorted(set(names))
