"""Who takes part: our modes, the peers, and the environment of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from benchmarks.against.child import SystemFailed, error_in

LOCKS = Path(__file__).parent / "locks"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    key: str
    """On the command line."""
    name: str
    """In the table."""
    module: str
    """Its driver, in this package."""
    algorithm: str
    lock: str = ""
    """File in `locks`; empty for ours, which runs in the environment of this process."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """In which it is measured."""


OURS = (
    System(key="ppo", name="plain PPO", module="ours", algorithm="ppo"),
    System(key="lagrangian", name="PPO-Lagrangian", module="ours", algorithm="lagrangian"),
    System(key="critic-free", name="critic-free", module="ours", algorithm="grpo"),
)
PEERS = (
    System(
        key="trl-ppo",
        name="TRL 1.12.0 PPO",
        module="trl_ppo",
        algorithm="ppo",
        lock="trl-1.12.txt",
        dtypes=("float32",),
    ),
    System(
        key="trl-grpo",
        name="TRL 1.16.0 GRPO",
        module="trl_critic_free",
        algorithm="grpo",
        lock="trl-1.16.txt",
        dtypes=("float32",),
    ),
    System(
        key="trl-rloo",
        name="TRL 1.16.0 RLOO",
        module="trl_critic_free",
        algorithm="rloo",
        lock="trl-1.16.txt",
        dtypes=("float32",),
    ),
    System(
        key="deepspeed-chat",
        name="DeepSpeed-Chat PPO",
        module="deepspeed_chat",
        algorithm="ppo",
        lock="deepspeed-chat.txt",
        dtypes=("bfloat16",),
    ),
)


def interpreter(system: System, environments: Path) -> Path:
    """Python of the system's environment, which is made where it is missing or its lock changed.

    Raises: SystemFailed with pip's own error.
    """
    if not system.lock:
        return Path(sys.executable)
    lock = LOCKS / system.lock
    folder = environments / lock.stem
    python, mark = folder / "bin" / "python", folder / ".installed"
    wanted = sha256(lock.read_bytes()).hexdigest()
    if not mark.is_file() or mark.read_text() != wanted:
        _install(lock, folder, python)
        mark.write_text(wanted)
    return python.absolute()


def _install(lock: Path, folder: Path, python: Path) -> None:
    print(f"making {folder} from {lock.name}: a few minutes, once", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps"]
    torch = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    _run([sys.executable, "-m", "venv", str(folder)], log)
    try:
        _run([*pip, torch], log)
    except SystemFailed:
        # The one package that the ordinary index may lack.
        _run([*pip, "--index-url", TORCH_INDEX, torch], log)
    _run([*pip, "-r", str(lock)], log)


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemFailed(error_in(log))
