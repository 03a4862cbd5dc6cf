from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "transformers", "openai", "ray", "datasets"}


def test_evaluation_imports_without_anything_heavy():
    code = "import equilibrate.evaluation, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert not HEAVY & loaded
