"""Both sides give the same numbers; memory by hand; the result keeps the contract."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import harness, log_probs
from equilibrate.planner.peak import peak_bytes

TOY = ["--tokens", "40", "--hidden", "4", "--vocabulary", "50", "--chunk-tokens", "8"]
QUICK = ["--repeats", "2", "--warmups", "0", "--threads", "1"]


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "COPY_BYTES", 2**16)
    monkeypatch.setattr(harness, "PROBE_SECONDS", 0.001)


def test_the_worst_moment_by_hand() -> None:
    given = torch.ones(100)

    def call() -> None:
        first = given + 1  # 400 bytes
        second = first + 1  # 800
        del first
        second[:50].mul_(2)  # a view and a change in place need nothing
        given.view(10, 10)  # nor does a view of what was there before
        (torch.ones(150, dtype=torch.int8), second)  # 550

    assert peak_bytes(call) == 800
    assert peak_bytes(lambda: given.t()) == 0


def test_memory_of_the_backward_pass_is_seen() -> None:
    given = torch.ones(100, requires_grad=True)
    # The exponential stays for the backward pass, where the gradient of the sum is a view of one
    # number: 400 + 4 + 4 bytes, and the gradient of 400.
    assert peak_bytes(lambda: torch.autograd.grad(given.exp().sum(), given)) == 808


def test_both_sides_give_the_same_numbers() -> None:
    ours, reference, num_kept = log_probs.make_sides(40, 4, 50, 0.5, 8)
    assert log_probs.largest_difference(ours(), reference()) < 1e-5
    assert 10 < num_kept < 30
    assert torch.count_nonzero(ours()[0]) == num_kept


def test_difference_by_hand() -> None:
    # 0.5 of 4 is more than 1 of 10.
    ours = [torch.tensor([3.5, 0.0]), torch.tensor([11.0])]
    assert log_probs.largest_difference(ours, [torch.tensor([4.0, 0.0]), torch.tensor([10.0])]) == (
        0.125
    )


def test_the_result_keeps_the_contract(no_clock: None, tmp_path: Path) -> None:
    file = tmp_path / "log_probs.json"
    log_probs.main([*TOY, *QUICK, "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["name"] == "log_probs"
    assert written["ratio"]["median"] > 0
    assert written["config"]["chunk_tokens"] == 8
    details = written["details"]
    flops = 6 * details["num_kept"] * 4 * 50
    rate = 1e9 * max(details["roof"]["gflops_per_second"])
    assert details["limit_seconds"] == pytest.approx(flops / rate)
    limit_fraction = details["limit_seconds"] / details["seconds"]
    assert written["limit_fraction"] == pytest.approx(limit_fraction)
    # The reference holds at least the logits and their gradient: 2 x 40 x 50 x 4 bytes.
    assert details["naive_peak_mib"] >= 2 * 40 * 50 * 4 / 2**20
    assert details["peak_mib"] < details["naive_peak_mib"]


def test_other_maths_is_refused(no_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "largest_difference", lambda *_: 1e-3)
    with pytest.raises(RuntimeError, match="other maths"):
        log_probs.main([*TOY, *QUICK])
