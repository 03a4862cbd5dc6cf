"""The command: cheap help, refused settings, and the whole run."""

import json
import subprocess
import sys

import pytest

from benchmarks import simulate


def test_help_loads_nothing_heavy():
    code = "import sys; import benchmarks.simulate; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(SystemExit) as stopped:
        simulate.main(["--help"])
    assert stopped.value.code == 0


def test_a_spread_out_of_range_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        simulate.main(["--sigma", "3"])
    assert stopped.value.code == 2
    assert "--sigma (3.0) must lie in 0 to 2" in capsys.readouterr().err


@pytest.mark.slow
def test_at_least_six_published_step_times_are_matched(tmp_path, capsys):
    path = tmp_path / "simulation.json"
    simulate.main(["--json", str(path)])
    data = json.loads(path.read_text())
    assert data["matched"] >= 6
    assert data["matched_left_out"] >= 6
    assert capsys.readouterr().out.startswith(f"Within 25%: {data['matched']} of ")
