"""Pairs, quartiles, the roof and the result file, without a clock that matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import harness, keep
from benchmarks.harness import Pairs, Quartiles, Result, make_parser, settle_roof
from benchmarks.limits import ModelShape, Roof, pass_flops, rollout_seconds, sync_seconds


def make_result(**changes) -> Result:
    fields = {
        "name": "toy",
        "ratio": Quartiles(0.5, 0.4, 0.6),
        "reference": "a bare toy",
        "limit_fraction": 0.25,
        "config": {"batch": 8},
    }
    return Result(**fields | changes)


def test_quartiles_by_hand() -> None:
    # Sorted 1 2 3 4 5: the quarters fall on values. Of 1 2 they lie at 1.25 and 1.75.
    assert Quartiles.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Quartiles(3.0, 2.0, 4.0)
    assert Quartiles.of([1.0, 2.0]) == Quartiles(1.5, 1.25, 1.75)
    assert Quartiles.of([7.0]) == Quartiles(7.0, 7.0, 7.0)


def test_ratio_is_reference_over_ours_pair_by_pair() -> None:
    # We take half the time, then twice the time.
    assert Pairs(ours=(1.0, 4.0), reference=(2.0, 2.0)).ratios == [2.0, 0.5]


def test_turns_are_taken_and_warm_ups_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    now = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def call(name: str, seconds: float):
        def run(number: int) -> None:
            calls.append(f"{name}{number}")
            now[0] += seconds * (number + 1)

        return run

    pairs = harness.measure_pairs(call("a", 1.0), call("b", 10.0), repeats=2, warmups=1)
    assert calls == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert pairs == Pairs(ours=(2.0, 3.0), reference=(20.0, 30.0))


def test_the_roof_is_the_better_measurement_and_its_move_is_told() -> None:
    before = Roof(flops_per_second=100e9, bytes_per_second=8e9)
    after = Roof(flops_per_second=95e9, bytes_per_second=10e9)
    roof, about = settle_roof(before, after)
    assert roof == Roof(flops_per_second=100e9, bytes_per_second=10e9)
    # Memory moved from 8 to 10: 2 / 10, more than the tenth that is allowed.
    assert about["moved_fraction"] == pytest.approx(0.2)
    assert about["is_steady"] is False
    assert about["gbytes_per_second"] == [8.0, 10.0]
    assert settle_roof(before, before)[1]["is_steady"] is True


def test_the_roof_of_this_machine_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "COPY_BYTES", 2**16)
    monkeypatch.setattr(harness, "PROBE_SECONDS", 0.001)
    roof = harness.RoofWatch([(2, 3, 4)]).finish()[0]
    assert roof.flops_per_second > 0
    assert roof.bytes_per_second > 0


def test_the_file_keeps_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "toy.json"
    harness.publish(make_result(details={"seconds": 2.0, "roof": {"rate": [1.0, 2.0]}}), file)
    written = json.loads(file.read_text())
    assert written["ratio"] == {"median": 0.5, "low": 0.4, "high": 0.6}
    assert (written["name"], written["reference"]) == ("toy", "a bare toy")
    assert written["limit_fraction"] == 0.25
    assert written["config"] == {"batch": 8}
    assert written["machine"]["cores"] >= 1
    assert "torch" in written["machine"]["versions"]
    table = capsys.readouterr().out
    assert "toy: 0.500 of a bare toy" in table
    assert "rate 1 to 2" in table


def test_the_machine_is_described_but_not_named() -> None:
    import socket

    assert socket.gethostname() not in json.dumps(harness.measured_on())


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.publish(make_result(limit_fraction=float("nan")), tmp_path / "toy.json")


def test_common_options() -> None:
    arguments = make_parser("about").parse_args(["--repeats", "4", "--json", "x.json"])
    assert (arguments.repeats, arguments.warmups) == (4, 3)
    assert "json" not in harness.settings_of(arguments)
    with pytest.raises(SystemExit):
        make_parser("about").parse_args(["--repeats", "0"])


@pytest.mark.parametrize(
    "name", ["rollout", "update", "sync", "end_to_end", "driver_cost", "log_probs"]
)
def test_help_needs_no_heavy_library(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as exit_info:
        module.main(["--help"])
    assert exit_info.value.code == 0
    assert "--json FILE" in capsys.readouterr().out


def test_a_row_a_label(tmp_path: Path):
    kept, file = tmp_path / "measured.jsonl", tmp_path / "sync.json"
    for label, ratio in (("sync", 1.0), ("rollout", 2.0), ("sync", 3.0)):
        file.write_text(json.dumps({"ratio": ratio}, indent=1))
        keep.keep(file, label, kept)
    assert kept.read_text() == (
        '{"label": "rollout", "ratio": 2.0}\n{"label": "sync", "ratio": 3.0}\n'
    )


def test_what_is_kept_here_is_sorted_and_has_one_row_a_label():
    labels = [json.loads(line)["label"] for line in keep.KEPT.read_text().splitlines()]
    assert labels == sorted(set(labels))
    assert {"against", "against-noisy", "simulate", "update"} <= set(labels)


# 100 parameters of 4 bytes: S = 400. Keys and values: 2 x 1 layer x 2 x 4 bytes = 16 per token.
SHAPE = ModelShape(num_parameters=100, num_layers=1, hidden_size=4, intermediate_size=8, kv_width=2)
ROOF = Roof(flops_per_second=1000.0, bytes_per_second=1000.0)


def test_bytes_of_weights_and_cache() -> None:
    assert SHAPE.num_bytes == 400
    assert SHAPE.kv_bytes_per_token == 16


def test_products_of_a_layer() -> None:
    assert SHAPE.gemm_shapes(3) == [(3, 4, 4), (3, 4, 8), (3, 8, 4)]


def test_rollout_of_two_responses_of_one_and_three_tokens() -> None:
    # Prefill of 4 tokens: 2 x 100 x 4 / 1000 = 0.8 (reading the weights: 0.4).
    # Step 2, one sequence with 2 + 1 cached tokens: (400 + 48) / 1000 = 0.448 (products: 0.2).
    # Step 3, 2 + 2 cached tokens: (400 + 64) / 1000 = 0.464.
    assert rollout_seconds(SHAPE, ROOF, [2, 2], [1, 3]) == pytest.approx(0.8 + 0.448 + 0.464)


def test_rollout_is_bound_by_products_where_memory_is_fast() -> None:
    fast = Roof(flops_per_second=1000.0, bytes_per_second=1e9)
    # 4 prompt tokens and one later step of 2 tokens: 0.2 s each.
    assert rollout_seconds(SHAPE, fast, [2, 2], [2, 2]) == pytest.approx(0.2 * (4 + 2))


def test_one_token_each_needs_the_prefill_alone() -> None:
    assert rollout_seconds(SHAPE, ROOF, [1], [1]) == pytest.approx(0.4)


def test_passes_of_ppo_and_its_lagrangian_form() -> None:
    # Update of three models: 3 x 2 + 3 x 6 = 24; with the three of scoring 30; plain PPO 20.
    assert pass_flops(1, 1, forwards=3, trainings=3) == 24
    assert pass_flops(1, 1, forwards=6, trainings=3) == 30
    assert pass_flops(1, 1, forwards=4, trainings=2) == 20
    assert pass_flops(100, 7, forwards=1, trainings=0) == 2 * 100 * 7


def test_sync_reads_and_writes_every_byte() -> None:
    assert sync_seconds(500, ROOF) == 1.0
