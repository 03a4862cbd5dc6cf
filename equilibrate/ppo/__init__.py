"""PPO with a cost constraint as pure functions on [B, T] tensors (Safe RLHF, Dai et al. 2023)."""
