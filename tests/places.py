"""Where things lie in the repository, so that no test counts the folders above it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "runtime"
BENCHMARKS = ROOT / "benchmarks"
TESTS = ROOT / "tests"
#: Golden folders: specs and what they compile to; pairs of specs and what is said of them; other tools' files.
CASES, CHANGES, IMPORTS = TESTS / "cases", TESTS / "changes", TESTS / "imports"
