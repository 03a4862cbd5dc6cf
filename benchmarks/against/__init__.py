"""Our loop and the peers' trainers, turn by turn on one machine (`python -m benchmarks.against`).

What a peer's environment imports (`job`, `turns`, `row_lengths` and the drivers `trl_ppo`,
`trl_critic_free`, `deepspeed_chat`) knows nothing of ours; the rest knows nothing of the peers.
"""
