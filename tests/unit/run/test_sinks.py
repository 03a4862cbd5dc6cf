from __future__ import annotations

import io
import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equilibrate.errors import DataError, ResourceError
from equilibrate.run.progress import ProgressMirror, format_line, format_step
from equilibrate.run.sinks import (
    JsonlFile,
    RunSink,
    TensorBoardMirror,
    WandbMirror,
    open_sink,
    read_rows,
    write_whole,
)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def write(self, iteration, values):
        self.calls.append(("write", iteration, dict(values)))

    def write_seconds(self, iteration, seconds):
        self.calls.append(("seconds", iteration, dict(seconds)))

    def forget_from(self, iteration):
        self.calls.append(("forget", iteration))

    def close(self):
        self.calls.append(("close",))


def test_rows_are_flushed_and_not_finite_becomes_null(tmp_path: Path):
    sink = RunSink(tmp_path)
    sink.write(0, {"reward": math.nan, "cost": np.float32(0.5), "kl": -math.inf})
    line = (tmp_path / "metrics.jsonl").read_text()  # before close
    assert line == '{"cost": 0.5, "iteration": 0, "kl": null, "reward": null}\n'
    sink.close()


def test_equal_runs_are_byte_equal_whatever_the_order_of_names(tmp_path: Path):
    values = {"reward": 0.1 + 0.2, "cost": 1e-17, "kl": 3.0}
    for name, items in (("a", values.items()), ("b", reversed(values.items()))):
        sink = RunSink(tmp_path / name)
        sink.write(0, dict(items))
        sink.close()
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab")
    assert one == other
    # The shortest text that gives the same float back.
    assert json.loads(one)["reward"] == 0.1 + 0.2


def test_an_unknown_name_is_refused_and_nothing_is_written(tmp_path: Path):
    sink = RunSink(tmp_path)
    with pytest.raises(ValueError, match=r"'rewrad'.*'reward'"):
        sink.write(0, {"rewrad": 1.0})
    assert sink.offset() == 0
    sink.close()


def write_iterations(sink: RunSink, iterations: range) -> None:
    for iteration in iterations:
        sink.write(iteration, {"reward": float(iteration)})
        sink.write_seconds(iteration, {"rollout": 1.0, "iteration": 2.0})


def test_the_phase_called_iteration_does_not_hide_the_number_of_the_iteration(tmp_path: Path):
    sink = RunSink(tmp_path)
    write_iterations(sink, range(7, 8))
    sink.close()
    assert read_rows(tmp_path / "timings.jsonl") == [
        {"iteration": 7, "seconds": {"rollout": 1.0, "iteration": 2.0}}
    ]


def test_resume_after_a_kill_gives_the_bytes_of_a_straight_run(tmp_path: Path):
    straight = RunSink(tmp_path / "straight")
    write_iterations(straight, range(4))
    straight.close()

    killed = RunSink(tmp_path / "killed")
    write_iterations(killed, range(2))
    offset = killed.offset()  # what a checkpoint remembers
    write_iterations(killed, range(2, 3))
    killed.close()
    for name in ("metrics.jsonl", "timings.jsonl"):
        with (tmp_path / "killed" / name).open("ab") as file:
            file.write(b'{"iteration": 3, "rew')  # killed while writing

    resumed = RunSink(tmp_path / "killed")
    resumed.rewind(offset)
    assert [row["iteration"] for row in read_rows(tmp_path / "killed/timings.jsonl")] == [0, 1]
    write_iterations(resumed, range(2, 4))
    resumed.close()
    for name in ("metrics.jsonl", "timings.jsonl"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("straight", "killed"))
        assert one == other


def test_rewind_to_the_start_forgets_all_and_tells_the_mirrors(tmp_path: Path):
    mirror = Recorder()
    sink = RunSink(tmp_path, [mirror])
    write_iterations(sink, range(2))
    sink.rewind(0)
    sink.close()
    assert read_rows(tmp_path / "metrics.jsonl") == []
    assert read_rows(tmp_path / "timings.jsonl") == []
    assert mirror.calls[-2:] == [("forget", 0), ("close",)]
    assert mirror.calls[:2] == [
        ("write", 0, {"reward": 0.0}),
        ("seconds", 0, {"rollout": 1.0, "iteration": 2.0}),
    ]


def test_rewind_refuses_a_file_that_lost_rows(tmp_path: Path):
    sink = RunSink(tmp_path)
    with pytest.raises(DataError, match=r"metrics.jsonl \(0 bytes\).*10 bytes"):
        sink.rewind(10)
    sink.close()


def test_an_offset_inside_a_line_cuts_the_whole_line(tmp_path: Path):
    file = JsonlFile(tmp_path / "rows.jsonl")
    file.append({"iteration": 0})
    whole = file.size()
    file.append({"iteration": 1})
    file.truncate(whole + 3)
    assert file.size() == whole
    file.close()


def test_reading_tolerates_a_torn_last_line_only(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"iteration": 0}\n{"iter')
    assert read_rows(path) == [{"iteration": 0}]
    path.write_text('{"iteration": 0}\nbroken\n{"iteration": 2}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="one JSON object"):
        read_rows(path)


def test_tensorboard_gets_finite_scalars(tmp_path: Path):
    mirror = TensorBoardMirror(tmp_path)
    mirror.write(0, {"reward": 1.0, "cost": math.nan})
    mirror.write_seconds(0, {"rollout": 1.0})
    mirror.forget_from(0)
    mirror.write(0, {"reward": 2.0})
    mirror.close()
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("events*")))
    assert b"metrics/reward" in content
    assert b"seconds/rollout" in content
    assert b"metrics/cost" not in content


def test_one_line_per_iteration_where_nobody_watches():
    stream = io.StringIO()
    mirror = ProgressMirror(iterations=20, stream=stream)
    mirror.forget_from(0)  # a fresh run resumes nothing
    mirror.write(4, {"reward": 1.25, "multiplier": math.nan})
    mirror.write_seconds(4, {"rollout": 0.5, "iteration": 2.0})
    mirror.close()
    assert stream.getvalue() == ("iteration  5/20  reward 1.250  lambda -  2.00 s (rollout 0.50)\n")


def test_a_skipped_update_is_shouted():
    assert "SKIPPED" in format_line(0, 1, {"skipped": 1.0}, {"iteration": 1.0})
    assert "SKIPPED" not in format_line(0, 1, {"skipped": 0.0}, {"iteration": 1.0})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_display_shows_first_and_latest():
    stream = Terminal()
    mirror = ProgressMirror(iterations=2, stream=stream)
    for iteration, reward in enumerate((0.125, 0.875)):
        mirror.write(iteration, {"reward": reward})
        mirror.write_seconds(iteration, {"rollout": 0.5, "iteration": 2.0})
    mirror.close()
    shown = stream.getvalue()
    assert "2/2" in shown
    assert "0.125" in shown
    assert "0.875" in shown


def test_wandb_is_offline_without_a_key_and_sends_scalars_only(tmp_path: Path, monkeypatch):
    started, logged = [], []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )
    fake = SimpleNamespace(
        init=lambda **settings: started.append(settings) or run,
        Settings=lambda **settings: settings,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    mirror = WandbMirror(tmp_path, "project")
    mirror.write(3, {"reward": 1.0, "cost": math.nan})
    mirror.write_seconds(3, {"rollout": 0.5})
    mirror.close()
    assert started[0]["mode"] == "offline"
    assert logged == [(3, {"metrics/reward": 1.0}), (3, {"seconds/rollout": 0.5})]
    monkeypatch.setenv("WANDB_API_KEY", "k")
    WandbMirror(tmp_path, "project").write(0, {"reward": 1.0})
    assert started[1]["mode"] == "online"


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_wandb_never_stops_training(tmp_path: Path, monkeypatch, caplog, where):
    def call(name):
        def do(*args, **kwargs):
            if name == where:
                raise OSError("disk full")
            return SimpleNamespace(log=call("log"), finish=call("finish"))

        return do

    fake = SimpleNamespace(init=call("init"), Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with caplog.at_level(logging.WARNING):
        sink = RunSink(tmp_path, [WandbMirror(tmp_path, "project")])
        write_iterations(sink, range(2))
        sink.close()
    assert caplog.text.count("Wandb is off for the rest of the run") == 1  # and then silence
    assert caplog.text.count("disk full") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


def test_a_file_in_the_place_of_tensorboard_is_one_warning(tmp_path: Path, caplog):
    (tmp_path / "tensorboard").write_text("a file")
    with caplog.at_level(logging.WARNING):
        sink = open_sink(tmp_path, iterations=2, log=io.StringIO())
        write_iterations(sink, range(2))
        sink.rewind(0)
        write_iterations(sink, range(2))
        sink.close()
    assert caplog.text.count("TensorBoard is off for the rest of the run, which goes on: ") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("call", ["write", "write_seconds", "forget_from", "close"])
def test_whatever_a_mirror_does_the_run_goes_on(tmp_path: Path, caplog, call):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "events")

    mirror = Recorder()
    setattr(mirror, call, fail)
    with caplog.at_level(logging.WARNING):
        sink = RunSink(tmp_path, [mirror, other := Recorder()])
        write_iterations(sink, range(1))
        sink.rewind(0)
        write_iterations(sink, range(1))
        sink.close()
    assert caplog.text.count("Recorder is off for the rest of the run") == 1
    assert [name for name, *_ in other.calls] == [
        "write", "seconds", "forget", "write", "seconds", "close"
    ]  # fmt: skip
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_a_disk_that_refuses_our_own_files_is_named(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written \(.*directory"):
        RunSink(tmp_path)
    rows = JsonlFile(tmp_path / "rows.jsonl")
    rows.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        rows._file = full
        with pytest.raises(
            ResourceError, match=r"rows\.jsonl: cannot be written \(.*No space left"
        ):
            rows.append({"iteration": 0})
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"results\.json: cannot be written"):
        write_whole(tmp_path / "file" / "results.json", "{}")


def test_open_sink_writes_files_and_lines(tmp_path: Path):
    stream = io.StringIO()
    sink = open_sink(tmp_path, iterations=1, log=stream)
    write_iterations(sink, range(1))
    sink.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1
    assert stream.getvalue().startswith("iteration 1/1  reward 0.000")


def test_opening_a_file_cuts_the_line_that_a_kill_left_torn(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"iteration": 0}\n{"iter')
    file = JsonlFile(path)
    file.append({"iteration": 1})
    file.close()
    assert read_rows(path) == [{"iteration": 0}, {"iteration": 1}]


def test_a_step_line_tells_the_mean_of_the_last_ten_and_the_time_left():
    """Steps 10 to 19 take 6 s each; 30 are left: 180 s. Losses 1.0 to 1.9 have the mean 1.45."""
    rows = [
        {"iteration": step, "num_steps": 50, "seconds": 6.0, "loss": step / 10}
        for step in range(10, 20)
    ]
    slow = {"iteration": 9, "num_steps": 50, "seconds": 900.0, "loss": 50.0}
    assert format_step("cost", [slow, *rows]) == "cost: step 20 of 50, loss 1.45, 3 min left"
    assert format_step("cost", [slow]) == "cost: step 10 of 50, loss 50, 600 min left"
