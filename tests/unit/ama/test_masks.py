import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.ama.masks import agrees, gradient_mask, random_mask, sign
from equilibrate.ama.signals import constant, sequence_mean
from equilibrate.ppo.losses import clipped_policy_loss


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def mask_of(signal, advantages, mask=None, rows=None, baseline=0.0, **options):
    options = {"level": "token", "delta": True, **options}
    mask = torch.ones_like(signal, dtype=torch.bool) if mask is None else mask
    rows = torch.ones(len(signal), dtype=torch.bool) if rows is None else rows
    b = baseline if isinstance(baseline, torch.Tensor) else constant(signal, baseline)
    return gradient_mask(signal, advantages, mask, rows, baseline=b, **options)


def random_batch(seed, rows=4, width=8):
    generator = torch.Generator().manual_seed(seed)
    signal, advantages = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    gate = torch.rand(rows, generator=generator) < 0.7
    return signal, advantages, mask, gate


seeds = st.integers(0, 9999)
levels = st.sampled_from(["token", "segment", "sequence"])


def test_token_is_kept_where_signal_and_advantage_agree():
    signal, advantages = row(1, 1, -1, -1), row(2, -2, 2, -2)
    assert mask_of(signal, advantages).tolist() == [[True, False, False, True]]


def test_zero_advantage_counts_as_positive():
    assert mask_of(row(1, -1), row(0, 0)).tolist() == [[True, False]]


def test_signal_at_the_baseline_is_dropped_on_both_sides():
    assert mask_of(row(0.5, 0.5), row(1, -1), baseline=0.5).tolist() == [[False, False]]


def test_a_dead_band_keeps_what_disagrees_a_little():
    """Side +1, band 0.25: -0.125 stays, -0.25 and -0.5 go; side -1 is the mirror of it."""
    signal = row(0.5, -0.125, -0.25, -0.5)
    for side in (1, -1):
        kept = mask_of(side * signal, side * torch.ones_like(signal), dead_band=0.25)
        assert kept.tolist() == [[True, True, False, False]]


@given(seeds, levels, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_a_wider_dead_band_drops_nothing_more(seed, level, band, wider):
    signal, advantages, mask, gate = random_batch(seed)
    narrow, wide = (
        mask_of(signal, advantages, mask, gate, level=level, dead_band=b)
        for b in sorted((band, wider))
    )
    assert not (narrow & ~wide).any()


@given(seeds)
def test_negating_both_sides_and_signal_leaves_the_mask(seed):
    signal, advantages, mask, gate = random_batch(seed)
    assert torch.equal(
        mask_of(signal, advantages, mask, gate), mask_of(-signal, -advantages, mask, gate)
    )


@given(seeds)
def test_swapping_sides_swaps_the_masks(seed):
    """Mirroring the signal about b turns the mask of the chosen side into the rejected one."""
    signal, _, _, _ = random_batch(seed)
    plus, minus = torch.ones_like(signal), -torch.ones_like(signal)
    b = constant(signal, 0.25)
    assert torch.equal(agrees(signal, plus, b), agrees(2 * b - signal, minus, b))
    assert not torch.any(agrees(signal, plus, b) & agrees(signal, minus, b))


@given(seeds, st.floats(0.01, 100), st.sampled_from([1, 3, 5]))
def test_token_mask_depends_on_the_sign_alone(seed, scale, power):
    """A monotone rescaling of the signal about the baseline changes nothing."""
    signal, advantages, mask, gate = random_batch(seed)
    b = 0.25
    rescaled = b + scale * (signal - b) ** power
    assert torch.equal(
        mask_of(signal, advantages, mask, gate, b), mask_of(rescaled, advantages, mask, gate, b)
    )


@given(seeds, levels, st.booleans(), st.booleans())
def test_mask_is_a_subset_and_the_gate_keeps_whole_rows(seed, level, delta, with_control):
    signal, advantages, mask, gate = random_batch(seed)
    control = torch.Generator().manual_seed(1) if with_control else None
    kept = mask_of(signal, advantages, mask, gate, level=level, delta=delta, control=control)
    assert not torch.any(kept & ~mask)
    assert torch.equal(kept[~gate], mask[~gate])


@given(seeds, st.booleans())
def test_segment_level_ends_at_token_and_sequence_level(seed, delta):
    signal, advantages, mask, gate = random_batch(seed)
    for kappa, level in ((-math.inf, "token"), (math.inf, "sequence")):
        segmented = mask_of(
            signal,
            advantages,
            mask,
            gate,
            level="segment",
            delta=delta,
            pivot_rule="const",
            pivot_value=kappa,
        )
        assert torch.equal(
            segmented, mask_of(signal, advantages, mask, gate, level=level, delta=delta)
        )


def test_segments_of_steps_by_hand():
    # |steps| .1 .2 4 .1 -> mean 1.1, std 1.675: the pivot is the step of -4
    # segments {.1, .2} mean .15 and {-4, .1} mean -1.95
    signal = row(0.1, 0.2, -4, 0.1)
    kept = mask_of(signal, row(1, 1, 1, 1), level="segment")
    assert kept.tolist() == [[True, True, False, False]]
    kept = mask_of(signal, row(-1, -1, -1, -1), level="segment")
    assert kept.tolist() == [[False, False, True, True]]


def test_segments_of_prefix_scores_cut_where_the_score_jumps():
    # jumps 0 .1 3 .1; the prompt's score of 50 is no jump
    signal = row(50, 1.0, 1.1, -1.9, -2.0)
    mask = torch.tensor([[False, True, True, True, True]])
    kept = mask_of(signal, torch.ones_like(signal), mask, level="segment", delta=False)
    assert kept.tolist() == [[False, True, True, False, False]]


def test_sequence_level_keeps_all_or_nothing():
    signal = torch.tensor([[5.0, -1.0], [-5.0, 1.0]])
    kept = mask_of(signal, torch.ones(2, 2), level="sequence")
    assert kept.tolist() == [[True, True], [False, False]]


def test_side_of_the_whole_response_overrides_the_advantages():
    signal = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    scores = torch.tensor([2.0, -2.0, 0.0])
    kept = mask_of(signal, -torch.ones(3, 2), response_scores=scores)
    assert kept.tolist() == [[True, False], [False, True], [True, False]]


def test_sequence_mean_baseline_compares_each_row_with_itself():
    signal = torch.tensor([[5.0, 7.0], [-7.0, -5.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    kept = mask_of(signal, torch.ones(2, 2), baseline=sequence_mean(signal, mask))
    assert kept.tolist() == [[False, True], [False, True]]


@given(seeds, levels)
def test_control_keeps_exactly_as_many_tokens(seed, level):
    signal, advantages, mask, gate = random_batch(seed)
    real = mask_of(signal, advantages, mask, gate, level=level)
    control = torch.Generator().manual_seed(seed)
    drawn = mask_of(signal, advantages, mask, gate, level=level, control=control)
    assert drawn[gate].sum() == real[gate].sum()


def test_control_is_seeded_and_not_the_mask_itself():
    signal, advantages, mask, _ = random_batch(0, rows=16, width=16)
    real, first, again, other = (
        mask_of(signal, advantages, mask, control=control)
        for control in (None, *(torch.Generator().manual_seed(s) for s in (1, 1, 2)))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, real)


def test_random_mask_draws_uniformly():
    maskable = torch.tensor([[True, True, False], [True, True, False]])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([random_mask(maskable, 1, generator) for _ in range(2000)])
    assert torch.all(draws.sum((1, 2)) == 1)
    share = draws.double().mean(0)
    # 4 candidates: 1/4 each, standard error sqrt(.25 * .75 / 2000) = .0097
    assert torch.all((share[maskable] - 0.25).abs() < 4 * 0.0097)


@given(seeds, levels, st.booleans())
def test_nan_outside_the_response_changes_nothing(seed, level, delta):
    signal, advantages, mask, gate = random_batch(seed)
    clean = mask_of(signal, advantages, mask, gate, level=level, delta=delta)
    signal, advantages = (torch.where(mask, x, math.nan) for x in (signal, advantages))
    assert torch.equal(clean, mask_of(signal, advantages, mask, gate, level=level, delta=delta))


@pytest.mark.parametrize("level", ["token", "segment", "sequence"])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4)])
@pytest.mark.parametrize("seed", [None, 0])
def test_empty_batches_and_empty_responses_are_safe(level, shape, seed):
    control = None if seed is None else torch.Generator().manual_seed(seed)
    empty = torch.zeros(shape)
    kept = mask_of(empty, empty, empty > 0, level=level, control=control)
    assert kept.shape == shape
    assert not kept.any()


def test_sign_counts_zero_as_plus_one():
    assert sign(row(-2, -0.0, 0, 3)).tolist() == [[-1, 1, 1, 1]]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shapes must be equal"):
        mask_of(row(1, 2), row(1))
    with pytest.raises(ValueError, match="shapes must be equal"):
        mask_of(row(1, 2), row(1, 2), rows=torch.ones(2, dtype=torch.bool))


RESPONSE = torch.tensor([[False, True, True, True], [False, False, True, False]])
ADVANTAGES = torch.tensor([[0.0, 1.0, -2.0, 3.0], [0.0, 0.0, -1.0, 0.0]])
OLD = torch.zeros(2, 4)
NEW = torch.tensor([[0.0, 0.1, -0.1, 0.5], [0.0, 0.0, 0.3, 0.0]])


def loss_and_gradient(mask, log_probs=NEW):
    leaf = log_probs.clone().requires_grad_()
    loss = clipped_policy_loss(
        leaf, OLD, ADVANTAGES, mask, clip_range=0.2, num_tokens=int(mask.sum())
    )
    loss.backward()
    return loss.item(), leaf.grad


def ama(signal):
    every_row = torch.ones(2, dtype=torch.bool)
    zero = constant(signal, 0.0)
    return gradient_mask(
        signal, ADVANTAGES, RESPONSE, every_row, baseline=zero, level="token", delta=True
    )


def test_a_signal_that_always_agrees_is_plain_ppo():
    mask = ama(ADVANTAGES)
    assert torch.equal(mask, RESPONSE)
    (loss, gradient), (plain, plain_gradient) = loss_and_gradient(mask), loss_and_gradient(RESPONSE)
    assert loss == plain
    assert torch.equal(gradient, plain_gradient)


def test_dropped_tokens_have_no_gradient_and_no_say():
    mask = ama(torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, -1.0, 0.0]]))
    assert mask.tolist() == [[False, True, False, True], [False, False, True, False]]
    loss, gradient = loss_and_gradient(mask)
    # ratios e^.1, clipped 1.2, and e^.3 with A = -1, over 3 kept tokens
    by_hand = (-(torch.e**0.1) * 1 - 1.2 * 3 + torch.e**0.3) / 3
    torch.testing.assert_close(torch.tensor(loss), torch.tensor(by_hand))
    assert gradient[0, 2] == 0
    changed, _ = loss_and_gradient(mask, torch.where(mask, NEW, 7.0))
    assert changed == loss
