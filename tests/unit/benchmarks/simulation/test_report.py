"""Rows come before predictions, and too few matches are said first."""

import json
import subprocess
import sys

import pytest

from benchmarks import simulate
from benchmarks.simulation.calibrate import Fit
from benchmarks.simulation.predict import Prediction
from benchmarks.simulation.published import read
from benchmarks.simulation.report import Compared, Run, as_json, markdown
from equilibrate.planner.events import Simulated
from tests.unit.planner.perfect import PERFECT


def seconds(step):
    return Simulated(
        step=step, rollout=1.0, scoring=0.5, update=0.5, sync=0.1, fixed=0.0, train_idle=0.2
    )


def run_with(errors):
    """A run whose rows are off by these fractions, and by twice as much when left out."""
    published = read()
    compared = [
        Compared(row, seconds(row.step_seconds * (1 + error)), 2 * error)
        for row, error in zip(published.rows, errors, strict=False)
    ]
    return Run(
        sigma=0.8,
        seed=0,
        fits={"H100": Fit(efficiency=PERFECT, errors=errors, left_out_errors=errors)},
        compared=compared,
        held_out=[],
        not_modelled=published.not_modelled,
        sources=published.sources,
        predictions={
            "job": [
                Prediction(
                    num_gpus=8,
                    rollouts=80,
                    colocated=seconds(10.0),
                    split=seconds(5.0),
                    rollout_gpus=2,
                ),
                Prediction(num_gpus=4, rollouts=80, colocated=None, split=None, rollout_gpus=None),
            ]
        },
    )


def test_matches_are_counted_with_and_without_the_row():
    run = run_with([0.24, -0.24, 0.1, -0.1, -0.26, 0.0, 0.0])
    assert run.num_matched == 6
    assert run.num_matched_left_out == 4
    text = markdown(run)
    assert text.startswith("Within 25%: 6 of 7")
    assert "not to be relied on" not in text


def test_too_few_matches_are_said_before_anything_else():
    text = markdown(run_with([0.3, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert text.startswith("**Fewer than 6 published step times are matched")
    assert "### Predicted: job" in text


def test_predictions_come_last():
    text = markdown(run_with([0.0] * 6))
    assert text.index(read().rows[0].name) < text.index("### Predicted: job")
    # 10 / 5 = 2 times faster; 80 rollouts in 5 s on 8 GPUs: 2 a second and GPU.
    assert "| 8 | 80 | 10.0 | 5.0 | 2 : 6 | 2.00 | 2.00 |" in text
    assert "| 4 | 80 | does not fit | does not fit | - | - | - |" in text


def test_typical_error_is_the_root_mean_square_of_logarithms():
    # ln 2 and 0: sqrt(0.5) x 0.693 = 0.490; e^0.490 - 1 = 0.63.
    assert "| typical error, fitted | 63% |" in markdown(run_with([1.0, 0.0]))


def test_json_holds_the_whole_run():
    run = run_with([0.1, 0.3])
    data = json.loads(json.dumps(as_json(run)))
    assert data["matched"] == 1
    assert data["rows"][0]["error"] == pytest.approx(0.1)
    assert data["rows"][0]["left_out_error"] == pytest.approx(0.2)
    assert data["predictions"]["job"][1]["split"] is None


def test_every_figure_has_a_source():
    published = read()
    used = [row.source for row in (*published.rows, *published.held_out)]
    used += [item.source for item in published.not_modelled]
    assert set(used) == set(published.sources)
    assert all(source["url"].startswith("https://") for source in published.sources.values())
    assert all(item.missing for item in published.not_modelled)
    assert not {row.name for row in published.rows} & {row.name for row in published.held_out}


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
