"""Learning from responses of an older policy: truncated importance weights."""

from __future__ import annotations

from torch import Tensor

from equilibrate.ppo.ratios import log_ratios


def truncated_importance(
    old_log_probs: Tensor, rollout_log_probs: Tensor, response_mask: Tensor, *, cap: float
) -> Tensor:
    """Weight of each token: how much likelier it is now than when it was sampled, at most `cap`.

        w_t = min(exp(old_log_probs_t - rollout_log_probs_t), cap)

    PPO's ratio stays that of new to old policy; the weight corrects for old against sampling one.

    Args:
        old_log_probs: [B, T], nats, under the policy before the update.
        rollout_log_probs: [B, T], nats, under the policy that sampled.
        response_mask: [B, T] bool.
        cap: >= 1; bounds the variance, at the price of a bias.
    Returns: [B, T] in [0, cap], 1 outside the response; no gradient flows through it.
    Source: Hilton et al. 2021 (arXiv 2110.00641), the decoupled objective; truncation as in
        Espeholt et al. 2018 (arXiv 1802.01561), eq. 1.
    """
    differences = log_ratios(old_log_probs, rollout_log_probs, response_mask)
    return differences.detach().exp().clamp(max=cap)
