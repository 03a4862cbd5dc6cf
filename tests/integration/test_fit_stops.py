"""How an offline training stops, and what a stop leaves behind. Nothing is started here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from actors import fit as fits
from actors.offline import _remove
from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def config(output: Path) -> FitConfig:
    tree = {"output": str(output), "fdc": {"amounts": {"GENERAL": 8}}}
    return parse_settings(FitConfig, tree)


def test_sigterm_ends_with_143_and_says_how_to_go_on(
    handler: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fits, "check_this_machine", lambda config: None)
    monkeypatch.setattr(fits, "check_inputs", lambda config, run: None)
    monkeypatch.setattr(fits, "ray_cluster", nullcontext)
    monkeypatch.setattr(fits, "prepare_fit_inputs", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert fits.fit(config(tmp_path / "run")) == 143
    assert capsys.readouterr().out == "stopped; the same command goes on from the last checkpoint\n"
    # A second one ends the process at once.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stop_while_an_old_training_is_removed_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its key, what is left of it would count as the whole of it."""

    class Bench:
        def turn_to(self, config: FitConfig) -> None: ...

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / fits.KEY_FILE).write_text("of other settings")
    monkeypatch.setattr(fits, "find_answers", lambda *_: tmp_path)
    monkeypatch.setattr(fits, "_training_key", lambda *_: "of these settings")
    monkeypatch.setattr("shutil.rmtree", stop)
    bench: Any = Bench()
    inputs: Any = None
    with pytest.raises(KeyboardInterrupt):
        fits.fit_with(config(tmp_path), tmp_path, inputs, bench, tmp_path)
    assert not (tmp_path / fits.KEY_FILE).exists()


def test_a_stop_while_checkpoints_are_removed_leaves_no_half_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"

    def stop(path: Path, **_: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    (folder / "iteration-1").mkdir(parents=True)
    with monkeypatch.context() as stopped:
        stopped.setattr("shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            _remove(folder)
    assert not folder.exists()
    folder.mkdir()
    _remove(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"ranking_accuracy": 0.75, "num_pairs": 8.0}, "in order on 75.0% of 8 held-out pairs"),
        ({"ranking_accuracy": 0.75, "num_answers": 8.0}, "AUC 0.750 over 8 held-out answers"),
        (
            {"ranking_accuracy": 0.75, "num_pairs": 8.0, "auc": 0.5, "num_answers": 4.0},
            "in order on 75.0% of 8 held-out pairs; AUC 0.500 over 4 held-out answers",
        ),
        ({"num_answers": 8.0}, "its held-out answers are all of one side"),
    ],
)
def test_what_is_said_of_a_scorers_order(figures: dict[str, float], said: str) -> None:
    assert fits.held_out_order(figures).startswith(said)
