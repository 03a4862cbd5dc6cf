"""The loop of one rank: its learning rate, and that it goes on exactly where it was stopped."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.config.files import parse_settings
from equilibrate.config.fit import FitConfig
from equilibrate.data.sequences import Sequences
from equilibrate.errors import DataError, NumericsError
from equilibrate.offline.table import OWN_TOKEN, AnswerTable
from equilibrate.offline.training import (
    OfflineTraining,
    Progress,
    batch_loss,
    learning_rate,
    plan_batches,
)
from equilibrate.ppo.batches import token_budget_batches

NUM_PAIRS = 24


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [
        (0, 1050, 0.02),  # first of 50 warm-up steps: 1 / 50
        (49, 1050, 1.0),  # last of them
        (50, 1050, 1.0),  # cosine of 0 of the other 1000
        (550, 1050, 0.5),  # half-way down: (1 + cos(pi / 2)) / 2
        (300, 1050, 0.5 + math.sqrt(0.125)),  # a quarter down: (1 + cos(pi / 4)) / 2
        (0, 8, 0.5),  # a quarter of a short run warms up: 2 steps
        (0, 1, 1.0),
    ],
)
def test_learning_rate_by_hand(step, steps, expected):
    assert learning_rate(step, steps=steps, peak=1.0) == pytest.approx(expected)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 16),
    num_batches=st.integers(1, 100),
)
def test_batches_are_full_and_each_row_comes_equally_often(lengths, batch_size, num_batches):
    batches = plan_batches(
        np.array(lengths), batch_size=batch_size, num_batches=num_batches, seed=3
    )
    assert [len(batch) for batch in batches] == [batch_size] * num_batches
    counts = np.bincount(np.concatenate(batches), minlength=len(lengths))
    assert counts.max() - counts.min() <= 1


def test_the_seed_fixes_the_batches():
    def plan(seed):
        lengths = np.arange(300) % 17 + 1
        return np.concatenate(plan_batches(lengths, batch_size=4, num_batches=100, seed=seed))

    assert plan(1).tolist() == plan(1).tolist()
    assert plan(1).tolist() != plan(2).tolist()


def test_batches_waste_little_and_are_no_curriculum():
    lengths = np.random.default_rng(0).integers(10, 40, size=4096)
    batches = plan_batches(lengths, batch_size=32, num_batches=128, seed=0)
    padded = sum(lengths[batch].max() * 32 for batch in batches)
    # 30 lengths over 64 sorted batches: most batches hold one or two neighbouring lengths.
    assert padded / lengths.sum() < 1.03
    means = np.array([lengths[batch].mean() for batch in batches[:64]])
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.3


@pytest.fixture(autouse=True)
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Scorer:
    """One number per token id, with its optimizer (`Trainable`)."""

    def __init__(self):
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 1)
        self.optimizer = torch.optim.AdamW(self.table.parameters(), lr=0.0)

    def __call__(self, token_ids):
        return self.table(token_ids).squeeze(-1).cumsum(1)

    def set_learning_rate(self, learning_rate):
        self.optimizer.param_groups[0]["lr"] = learning_rate

    def backward(self, loss, *, is_last):
        loss.backward()

    def step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.table.parameters(), 1.0).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def state(self):
        return deepcopy((self.table.state_dict(), self.optimizer.state_dict()))

    def load(self, state):
        self.table.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])


PAIRS = [[pair % 6, token, 9] for pair in range(NUM_PAIRS) for token in (7, 3)]
SINGLES = [[number % 6, token, 9, 9] for number in range(6) for token in (7, 3)]


def table_of(rows, *, num_alone=0) -> AnswerTable:
    """An answer that begins with token 3 is safe, others are not; prompts are one token."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return AnswerTable(
        sequences=Sequences(np.concatenate(rows), starts, np.ones(len(rows), np.int64)),
        learn_starts=np.ones(len(rows), np.int64),
        targets=np.full(len(rows), OWN_TOKEN),
        sides=np.array([1, -1] * (len(rows) // 2)),
        is_safe=np.array([row[1:2] == [3] for row in rows]),
        categories=np.zeros(len(rows), np.int64),
        answers_per_example=2,
        num_alone=num_alone,
        scores={},
    )


def pairs() -> AnswerTable:
    return table_of(PAIRS)


def mixed() -> AnswerTable:
    return table_of(PAIRS + SINGLES, num_alone=len(SINGLES))


def training(model, *, table=None, **changes) -> OfflineTraining:
    tree = {
        "objective": {"type": "cost", "held_out_fraction": 0.3},
        "data": {"policy": "unused", "train": "unused"},
        "batch_size": 4,
        "steps": 12,
        "lr": 0.3,
    }
    config = parse_settings(FitConfig, tree | changes)
    table = table or pairs()
    loss = batch_loss(table, config, torch.device("cpu"))
    return OfflineTraining(config, table, loss, model)


def test_a_cost_model_learns_order_and_sign_of_pairs_it_never_saw():
    model = Scorer()
    made = training(model)
    figures = made.run(Progress(), lambda progress: None)
    assert figures["num_steps"] == 12
    found = made.calibrate()["cost"]
    # Two of six prompts are held out, with the four pairs of each.
    assert found["num_pairs"] == 8
    assert found["ranking_accuracy"] == found["sign_accuracy"] == 1.0
    assert found["safe_mean"] < 0 < found["unsafe_mean"]


def test_no_held_out_pair_is_ever_planned(monkeypatch):
    made = training(Scorer())
    planned: list[int] = []
    plan = made._loss.plan
    monkeypatch.setattr(made._loss, "plan", lambda e: (planned.extend(e.tolist()), plan(e))[1])
    made.run(Progress(), lambda progress: None)
    learned, held_out = pairs().split(0.3, seed=0)
    assert set(planned) == set(learned.tolist())
    assert not set(planned) & set(held_out.tolist())


@pytest.mark.parametrize("table", [pairs, mixed])
def test_it_goes_on_exactly_from_each_checkpoint(table):
    whole, kept = Scorer(), []
    expected = training(whole, table=table()).run(
        Progress(), lambda p: kept.append((p, whole.state()))
    )
    assert [progress.step for progress, _ in kept] == [3, 6, 9]
    for progress, state in kept:
        again = Scorer()
        again.load(state)
        assert training(again, table=table()).run(progress, lambda p: None) == expected
        assert torch.equal(again.table.weight, whole.table.weight)


def test_a_slow_training_is_saved_by_the_clock_too(monkeypatch):
    """Of 12 steps each third is a quarter of the run. Ten minutes are three steps of 200 s, two of
    400 s since the last save, and one of 700 s."""
    for seconds, saved in ((200, [3, 6, 9]), (400, [2, 3, 5, 6, 8, 9, 11]), (700, [*range(1, 12)])):
        kept, clock = [], Clock(monkeypatch)
        made = training(Scorer())
        made.run(Progress(), lambda p, kept=kept: kept.append(p.step), clock.passes(seconds))
        assert kept == saved


def test_saving_takes_a_twentieth_of_the_time_at_most(monkeypatch):
    """Each save takes 100 s, so the clock asks for the next 2,000 s later: by steps of 700 s after
    three. The first is due after ten minutes."""
    kept, clock = [], Clock(monkeypatch)

    def save(progress):
        kept.append(progress.step)
        clock.now += 100

    training(Scorer(), steps=100).run(Progress(), save, clock.passes(700))
    assert kept[:5] == [1, 4, 7, 10, 13]


def test_each_step_tells_its_figures(monkeypatch):
    rows = []
    clock = Clock(monkeypatch)
    training(Scorer(), steps=4).run(Progress(), lambda progress: None, rows.append)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    # One of four steps warms up; the cosine falls over the other three.
    assert [row["lr"] for row in rows] == pytest.approx([0.3, 0.3, 0.225, 0.075])
    assert {row["num_steps"] for row in rows} == {4}
    assert {row["seconds"] for row in rows} == {clock.now}
    assert all(row["loss"] > 0 and row["gradient_norm"] > 0 for row in rows)


class Clock:
    """Stands still but for what is passed."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("equilibrate.offline.training.time.monotonic", lambda: self.now)

    def passes(self, seconds):
        def tell(figures):
            self.now += seconds

        return tell


def test_steps_are_counted_by_epochs_where_none_are_given():
    # 16 pairs of four prompts are left to learn from.
    figures = training(Scorer(), steps=0, epochs=3).run(Progress(), lambda progress: None)
    assert figures["num_steps"] == 3 * 16 / 4


def test_a_gradient_that_is_not_finite_stops_the_training():
    model = Scorer()
    torch.nn.init.constant_(model.table.weight, torch.nan)
    with pytest.raises(NumericsError, match=r"cost training: step 0, gradient norm .* lr"):
        training(model).run(Progress(), lambda progress: None)


def test_held_out_prompts_are_not_learned_from():
    table = pairs()
    learned, held_out = table.split(0.3, seed=1)
    assert sorted([*learned, *held_out]) == list(range(NUM_PAIRS))
    assert not {pair % 6 for pair in learned} & {pair % 6 for pair in held_out}
    assert table.split(0.0, seed=1)[0].tolist() == list(range(NUM_PAIRS))


def test_one_prompt_cannot_be_split():
    table = pairs()
    table.sequences.flat[::3] = 1
    with pytest.raises(DataError, match="1 prompt is too few"):
        table.split(0.05, seed=0)


def test_pairs_and_single_answers_are_counted_and_held_out_by_prompt():
    table = mixed()
    learned, held_out = table.split(0.3, seed=0)
    prompts = [
        {int(table.sequences.flat[table.sequences.starts[row]]) for row in table.rows_of(examples)}
        for examples in (learned, held_out)
    ]
    assert not prompts[0] & prompts[1]
    made = training(Scorer(), table=table)
    made.run(Progress(), lambda progress: None)
    found = made.calibrate()["cost"]
    # Two of six prompts, each with four pairs and two single answers.
    assert (found["num_pairs"], found["num_answers"]) == (8, 4)
    assert found["ranking_accuracy"] == found["auc"] == found["sign_accuracy"] == 1.0


def run_of(table):
    model = Scorer()
    made = training(model, table=table)
    figures = made.run(Progress(), lambda p: None)
    return figures, made.calibrate(), model.table.weight.tolist()


def test_without_single_answers_a_mixed_run_is_the_run_of_its_pairs():
    no_room = [[number % 6] for number in range(4)]
    table = table_of(PAIRS + no_room, num_alone=4).comparable()
    assert table.num_left_out == 4
    assert run_of(table) == run_of(pairs())


def test_without_pairs_a_mixed_run_is_the_run_of_its_single_answers():
    the_same = [[number, 7, 9] for number in range(3) for _ in range(2)]
    table = table_of(the_same + SINGLES, num_alone=len(SINGLES)).comparable()
    assert (table.num_left_out, table.answers_per_example) == (6, 1)
    alone = table_of(SINGLES, num_alone=len(SINGLES)).comparable()
    assert run_of(table) == run_of(alone)


@given(
    pair_lengths=st.lists(st.tuples(st.integers(2, 20), st.integers(2, 20)), max_size=8),
    single_lengths=st.lists(st.integers(2, 20), min_size=1, max_size=8),
)
def test_no_pass_of_mixed_examples_pads_beyond_its_budget(pair_lengths, single_lengths):
    lengths = [length for pair in pair_lengths for length in pair] + single_lengths
    if len(lengths) % 2:
        lengths.append(2)
    num_alone = len(lengths) - 2 * len(pair_lengths)
    table = table_of([[1] * length for length in lengths], num_alone=num_alone)
    everything = np.arange(len(table))
    assert table.rows_of(everything).tolist() == list(range(len(lengths)))
    for part in token_budget_batches(table.example_lengths.tolist(), 64):
        rows = table.rows_of(part)
        assert len(part) == 1 or len(rows) * max(table.sequences.lengths[rows]) <= 64


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("token_wise", "of_pair", "of_unsafe"),
    [
        # Scores at the ends: 2 above -0.5; the single unsafe answer 0.5.
        (False, softplus(-2.5) + softplus(-2) + softplus(-0.5), softplus(-0.5)),
        # At the two compared tokens 1 above -1, then as at the end; 1, 1.5 and 0.5.
        (
            True,
            (softplus(-2) + 2 * softplus(-1) + softplus(-2.5) + softplus(-2) + softplus(-0.5)) / 2,
            (softplus(-1) + softplus(-1.5) + softplus(-0.5)) / 3,
        ),
    ],
)
def test_the_loss_of_a_mixed_batch_by_hand(token_wise, of_pair, of_unsafe):
    """A token scores (its number - 5) / 2; the single safe answer has 0.5, on the wrong side."""
    rows = [[1, 7, 9], [1, 3, 4], [2, 7, 8, 6], [2, 6]]
    table = replace(table_of(rows, num_alone=2), is_safe=np.array([False, True, False, True]))
    tree = {
        "objective": {"type": "cost", "token_wise": token_wise, "regularization": 0.0},
        "data": {"policy": "unused", "train": "unused"},
    }
    loss = batch_loss(table, parse_settings(FitConfig, tree), torch.device("cpu"))
    plan = loss.plan(np.array([2, 0, 1]))

    def part(*places):
        return loss.loss(lambda ids: (ids.float() - 5) / 2, plan, np.array(places)).item()

    expected = (of_pair + of_unsafe + softplus(0.5)) / 3
    assert part(0, 1, 2) == pytest.approx(expected, rel=1e-6)
    assert part(0, 1) + part(2) == pytest.approx(expected, rel=1e-6)
    assert part(1) == pytest.approx(of_pair / 3, rel=1e-6)
