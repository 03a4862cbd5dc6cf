"""The library stands without the cluster's libraries, and the command line starts without any."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers", "datasets"}
COMMAND_LINE = {"equilibrate.cli", "equilibrate.__main__"}

# Hidden and not forbidden: accelerate asks `find_spec` whether deepspeed is there.
BLOCKED_IMPORTS = """
import importlib, sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {"ray", "vllm", "deepspeed"}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hidden, sys.meta_path)
for module in sys.argv[1:]:
    importlib.import_module(module)
"""

LOADED_BY_COMMAND = """
import json, runpy, sys

sys.argv[0] = "equilibrate"
try:
    runpy.run_module("equilibrate", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def library_modules() -> list[str]:
    names = []
    for path in sorted((ROOT / "equilibrate").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if name not in COMMAND_LINE]


def test_import_of_the_package_is_light():
    result = python("import equilibrate, sys; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    assert not HEAVY & set(result.stdout.split())


VALIDATE = ["validate", "--config", "deploy/configs/sandbox.yaml"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], VALIDATE])
def test_help_and_validation_load_nothing_heavy(arguments):
    result = python(LOADED_BY_COMMAND, *arguments)
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stderr.splitlines()[-1]))
    assert not HEAVY & loaded


def test_every_module_of_the_library_imports_without_the_cluster():
    result = python(BLOCKED_IMPORTS, *library_modules())
    assert result.returncode == 0, result.stderr


def test_the_block_blocks():
    result = python(BLOCKED_IMPORTS, "json", "ray")
    assert "No module named 'ray'" in result.stderr
