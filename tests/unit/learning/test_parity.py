from __future__ import annotations

import math

import pytest
import torch

from equilibrate.errors import ParityError
from equilibrate.learning.parity import TOLERANCES, ParityGap, parity_gap, require_parity
from tests.unit.learning.test_targets import make_tokens, row


def require(gap: ParityGap, dtype: str, tolerance: float | None = None) -> None:
    require_parity(gap, dtype=dtype, tolerance=tolerance, iteration=3)  # type: ignore[arg-type]


def test_gap_reads_response_tokens_alone() -> None:
    tokens = make_tokens(
        rollout_log_probs=row([0.0, -1.0, -2.0]), old_log_probs=row([7.0, -1.5, -2.25])
    )
    # 0.5 and 0.25 in the first response, 0 in the one token of the second.
    assert parity_gap(tokens) == pytest.approx((0.25, 0.5))
    nothing = make_tokens(response_mask=torch.zeros(2, 3, dtype=torch.bool))
    assert parity_gap(nothing) == (0.0, 0.0)


@pytest.mark.parametrize(
    "gap",
    [
        ParityGap(mean=0.3, largest=0.5),  # a head that was not sent
        ParityGap(mean=1e-6, largest=1e-3),  # one token in a thousand
        ParityGap(mean=math.nan, largest=math.nan),
    ],
)
def test_float32_bears_no_token_that_differs(gap: ParityGap) -> None:
    with pytest.raises(ParityError, match=r"iteration 3: .* 1\.00e-04 at most in float32"):
        require(gap, "float32")


def test_bfloat16_bears_single_tokens_but_not_a_broken_sync() -> None:
    # Measured on a real model of 135 M parameters: 0.154 nats at most.
    sound = ParityGap(mean=0.01, largest=0.154)
    require(sound, "bfloat16")
    # And 187 tokens of German answers at a temperature of 0.7.
    require(ParityGap(mean=0.0521, largest=0.341), "bfloat16")
    with pytest.raises(ParityError):
        require(sound, "float32")
    for broken in (ParityGap(mean=0.3, largest=0.5), ParityGap(mean=math.nan, largest=0.1)):
        with pytest.raises(ParityError, match="on average in bfloat16"):
            require(broken, "bfloat16")


def test_a_setting_replaces_the_tolerance_of_the_dtype() -> None:
    assert TOLERANCES["float32"] == 1e-4
    require(ParityGap(mean=0.1, largest=9.0), "float32", tolerance=10.0)
    require(ParityGap(mean=0.1, largest=9.0), "bfloat16", tolerance=0.2)
    with pytest.raises(ParityError, match=r"differ by 1\.00e-01 nats"):
        require(ParityGap(mean=0.1, largest=9.0), "bfloat16", tolerance=0.02)
