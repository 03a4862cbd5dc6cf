"""Seeds from numbers and names: the same in every process and on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers, for example run seed, iteration and epoch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def request_seed(run_seed: int, iteration: int, prompt_id: str, copy: int) -> int:
    """Seed in [0, 2^63) that depends on these four alone, in every process and on every machine."""
    key = repr((run_seed, iteration, prompt_id, copy)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
