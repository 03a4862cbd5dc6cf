"""Choosing among several answers of the policy itself: rejection sampling."""

from __future__ import annotations

from collections.abc import Sequence

from equilibrate.types import ScoredRollout, combined


def best_and_worst(
    scored: Sequence[ScoredRollout], *, copies: int, multiplier: float
) -> list[tuple[ScoredRollout, ScoredRollout]]:
    """Of the answers to each prompt the one of the highest and the one of the lowest score.

    The score is `types.combined`. An answer that was cut off before its end is never the best, one
    without a finite score neither best nor worst. A prompt whose answers are all alike, or of which
    none can be the best, tells nothing and is left out.

    Args:
        scored: the `copies` answers to one prompt follow one another.
        multiplier: lambda >= 0.
    Raises: ValueError if the number of answers is not a multiple of `copies`.
    Source: rejection sampling of Llama 2 (Touvron et al. 2023, section 3.2.3); the combined score
        is that of Safe RLHF.
    """
    if copies < 1 or len(scored) % copies:
        raise ValueError(f"{len(scored)} answers must be a multiple of copies ({copies})")

    def score(answer: ScoredRollout) -> float:
        return combined(answer.reward, answer.cost, multiplier)

    chosen = []
    for start in range(0, len(scored), copies):
        answers = [answer for answer in scored[start : start + copies] if not answer.broken]
        whole = [answer for answer in answers if not answer.rollout.finish_reason.is_truncated]
        if not whole:
            continue
        best, worst = max(whole, key=score), min(answers, key=score)
        if best.rollout.token_ids.tolist() != worst.rollout.token_ids.tolist():
            chosen.append((best, worst))
    return chosen
