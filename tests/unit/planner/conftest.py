"""A machine and a model small enough for arithmetic by hand."""

from collections.abc import Callable

import pytest

from equilibrate.planner.costs import Costs
from equilibrate.planner.hardware import Efficiency, Gpu
from equilibrate.planner.workload import Lengths, Model, Placement, Workload
from tests.unit.planner.perfect import PERFECT

TOY_GPU = Gpu(
    name="toy",
    flops_per_second=1000.0,
    memory_bytes_per_second=100.0,
    memory_bytes=1e6,
    nvlink_bytes_per_second=10.0,
    network_bytes_per_second=2.0,
    nvlink_domain=2,
)
# 10 parameters, S = 20 bytes, 2 bytes of keys and values a token.
TOY_MODEL = Model(
    name="toy",
    num_parameters=10.0,
    num_active=10.0,
    num_layers=1,
    hidden_size=4,
    attention_width=0.0,
    kv_heads=1,
    kv_bytes_per_token=2.0,
)


@pytest.fixture
def make_costs() -> Callable[..., Costs]:
    """Two rollouts of 4 + 3 tokens on one GPU, unless told otherwise."""

    def make(
        gpu: Gpu = TOY_GPU,
        efficiency: Efficiency = PERFECT,
        *,
        model: Model = TOY_MODEL,
        length: float = 3,
        sigma: float = 0.0,
        longest: int = 64,
        num_rollouts: int = 2,
        work: dict | None = None,
        **placement: object,
    ) -> Costs:
        workload = Workload(
            model=model,
            num_rollouts=num_rollouts,
            prompt_tokens=4,
            lengths=Lengths(mean=length, longest=longest, sigma=sigma),
            **(work or {}),
        )
        place = {"rollout_gpus": 1, "train_gpus": 1, "colocated": True, **placement}
        return Costs(gpu, efficiency, workload, Placement(**place))

    return make
