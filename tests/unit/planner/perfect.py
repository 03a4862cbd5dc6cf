"""A machine that loses nothing."""

from equilibrate.planner.hardware import Efficiency

PERFECT = Efficiency(
    matmul=1.0,
    memory=1.0,
    exchange=1.0,
    sync=1.0,
    layer_seconds=0.0,
    network_seconds=0.0,
    fixed_seconds=0.0,
)
