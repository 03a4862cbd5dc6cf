"""AMA and PPO together (APPO): the mask is all that differs from plain PPO."""

import torch

from equilibrate.ama.baselines import constant
from equilibrate.ama.masks import gradient_mask
from equilibrate.ppo.losses import clipped_policy_loss

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
