"""Preference pairs for a policy, in chosen amounts of each class: what DPO and its kin learn from.

On harmful prompts the preferred answer refuses or offers something safe and the other one helps; on
harmless prompts the preferred one is right and the other is mostly wrong, or declines for no
reason. One pair in ten is the wrong way round (`LABEL_NOISE`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from equilibrate.sandbox.answers import Style, write_answer
from equilibrate.sandbox.data import (
    LABEL_NOISE,
    PAIR_SLOT_NOISES,
    SAME_STYLE_SHARE,
    Row,
    draw,
)
from equilibrate.sandbox.grammar import Request, sample_request, training_pool
from equilibrate.sandbox.oracle import judge_request
from equilibrate.sandbox.world import World
from equilibrate.types import Category

CAUTIOUS_STYLES = {Style.REFUSE: 0.5, Style.SAFE: 0.5}
HELPING_STYLES = {Style.COMPLY: 0.7, Style.HEDGE: 0.15, Style.LEAK: 0.15}
NEEDLESS_STYLES = {Style.REFUSE: 0.3, Style.SAFE: 0.5, Style.HEDGE: 0.2}


def policy_pair_rows(
    world: World, amounts: Mapping[Category, int], *, mislabelled_fraction: float, seed: int
) -> Iterator[Row]:
    """PKU-SafeRLHF columns, with category and preferred_response_id.

    Args:
        amounts: pairs of each class. A smaller amount of the same seed is a part of a larger one.
        mislabelled_fraction: share of the safety pairs whose prompt is harmless in truth, labelled
            and answered as if it were not.
    """
    pool = training_pool(world)
    # In the order of the classes, not of the settings: one key, one result.
    for category in (category for category in Category if category in amounts):
        rng = random.Random(f"{world.seed}/policy_pairs/{seed}/{category.value}")
        for _ in range(amounts[category]):
            is_mislabelled = rng.random() < mislabelled_fraction and category.is_safety
            harmless = rng.choice((Category.GENERAL, Category.BORDERLINE))
            request = sample_request(harmless if is_mislabelled else category, pool, rng)
            yield _pair(world, request, category, rng)


def _pair(world: World, request: Request, category: Category, rng: random.Random) -> Row:
    precise, sloppy = PAIR_SLOT_NOISES
    if category.is_safety:
        # Who takes the prompt for a harmful one answers with care, and is none the more helpful.
        chosen = write_answer(world, request, draw(CAUTIOUS_STYLES, rng), rng, slot_noise=precise)
        rejected = write_answer(world, request, draw(HELPING_STYLES, rng), rng, slot_noise=precise)
    else:
        chosen = write_answer(world, request, Style.COMPLY, rng, slot_noise=precise)
        style = Style.COMPLY if rng.random() < SAME_STYLE_SHARE else draw(NEEDLESS_STYLES, rng)
        rejected = chosen
        while rejected == chosen:
            rejected = write_answer(world, request, style, rng, slot_noise=sloppy)
    helpful = [judge_request(world, request, text).helpfulness for text in (chosen, rejected)]
    # The labels follow what the annotator takes the prompt for, not what it is.
    is_safe = [not category.is_safety or text is chosen for text in (chosen, rejected)]
    first = rng.randrange(2)
    order = (0, 1) if first == 0 else (1, 0)
    responses = [(chosen, rejected)[i] for i in order]
    safe = [is_safe[i] for i in order]
    preferred, better = (order.index(0), order.index(int(helpful[1] > helpful[0])))
    return {
        "prompt": request.text,
        "response_0": responses[0],
        "response_1": responses[1],
        "preferred_response_id": _noisy(preferred, rng),
        "better_response_id": _noisy(better, rng),
        "is_response_0_safe": bool(_noisy(int(safe[0]), rng)),
        "is_response_1_safe": bool(_noisy(int(safe[1]), rng)),
        "category": category.value,
    }


def _noisy(label: int, rng: random.Random) -> int:
    return 1 - label if rng.random() < LABEL_NOISE else label
