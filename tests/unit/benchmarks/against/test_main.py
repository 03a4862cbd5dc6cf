"""Options, and what the result says above its rows."""

import pytest

from benchmarks.against import __main__ as against
from benchmarks.against.systems import OURS, PEERS

QUARTILES = {"median": 1.0, "low": 1.0, "high": 1.0}


def make_row(median: float, *, ours: str = OURS[0].name, peer: str = PEERS[0].name) -> dict:
    block = {"precision": "float32", "lengths": "fixed", "rollouts": 16}
    return block | {"ours": ours, "peer": peer, "ratio": QUARTILES | {"median": median}}


def test_tiny_makes_everything_small() -> None:
    arguments = against.parse(["--tiny", "--rollouts", "999"])
    assert arguments.rollouts == [8]
    assert arguments.longest == {"fixed": 8, "ragged": 40}
    assert against.parse([]).longest == {"fixed": 64, "ragged": 200}


def test_each_precision_has_the_peers_that_train_in_it() -> None:
    arguments = against.parse(["--rollouts", "16", "--lengths", "fixed", "--ours", "ppo"])
    blocks = {
        setting.name: [s.key for s in against._taking_part((*OURS, *PEERS), setting, arguments)]
        for setting in against._settings(arguments)
    }
    assert blocks == {
        "float32-16-fixed": ["ppo", "trl-ppo", "trl-grpo", "trl-rloo"],
        "bfloat16-16-fixed": ["ppo", "deepspeed-chat"],
    }


def test_rollouts_are_whole_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        against.parse(["--rollouts", "16", "18"])
    assert "multiples of 4" in capsys.readouterr().err


def test_the_ratio_above_is_the_worst_of_plain_ppo_to_ppo() -> None:
    rows = [
        make_row(2.0),
        make_row(1.5),
        make_row(0.2, ours=OURS[1].name),
        make_row(0.1, peer="TRL 1.16.0 GRPO"),
        {"ours": OURS[0].name, "peer": PEERS[0].name, "ratio": None},
    ]
    lowest = against.lowest_ratio(rows)
    assert lowest is not None
    assert lowest["ratio"]["median"] == 1.5
    assert against.lowest_ratio(rows[2:]) is None


def test_the_exit_code_is_for_different_work_alone(monkeypatch, capsys) -> None:
    block = {"precision": "float32", "lengths": "fixed", "rollouts": 8}
    row = block | {"ours": "a", "peer": "b", "ratio": None}

    def exit_code(error: str) -> int:
        result = against.Result(
            name="against",
            ratio=None,
            reference="no peer",
            limit_fraction=None,
            config={},
            details={"phases": []},
            rows=[{**row, "error": error}],
        )
        monkeypatch.setattr(against, "measure", lambda arguments: result)
        return against.main(["--tiny"])

    assert exit_code("b: ImportError: gone") == 0
    assert "| b: ImportError: gone |" in capsys.readouterr().out
    assert exit_code("different work: 3 tokens were sampled, by ours 4") == 1
