"""How the shares of the classes change while the policy learns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from equilibrate.fdc.mixture import normalise
from equilibrate.types import Category, ScoredRollout, is_unsafe


class MixtureSchedule(Protocol):
    def shares(self) -> dict[Category, float]:
        """Positive shares that sum to 1."""

    def observe(self, scored: Sequence[ScoredRollout]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make_schedule(
    kind: Literal["fixed", "saturation"], mixture: Mapping[Category, float]
) -> MixtureSchedule:
    return SaturationSchedule(mixture) if kind == "saturation" else FixedSchedule(mixture)


class FixedSchedule:
    """The same shares from the first iteration to the last."""

    def __init__(self, mixture: Mapping[Category, float]) -> None:
        self._shares = normalise(mixture)

    def shares(self) -> dict[Category, float]:
        return dict(self._shares)

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Outcomes do not move a fixed mixture."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(slots=True)
class Progress:
    """Fraction of unsafe responses of one class, averaged over a short and a long past."""

    fast: float = 0.0
    slow: float = 0.0
    best: float = math.inf
    """Lowest `fast` since the averages are full."""
    num_rollouts: int = 0


class SaturationSchedule:
    """A safety class that has stopped improving gives its share to those that still learn.

    A class is saturated while its unsafe fraction falls by less than `tolerance` (slow minus fast
    average) and is within `tolerance` of its best: one that gets worse again takes its share back.
    It keeps `floor` of its share, so that getting worse is noticed. What it gives is split over
    the unsaturated safety classes in proportion to their own shares; with none left, all keep
    theirs. GENERAL and BORDERLINE are never touched: over-refusal would pay for it.

    Args:
        mixture: wanted shares, ratios or counts.
        tolerance: fraction of unsafe responses (cost > 0), in [0, 1].
        fast_rollouts, slow_rollouts: rollouts of the class that the two averages reach back.
            Counting rollouts, not iterations, keeps their noise the same at any share.
        floor: fraction of its own share that a saturated class keeps.
    """

    def __init__(
        self,
        mixture: Mapping[Category, float],
        *,
        tolerance: float = 0.03,
        fast_rollouts: int = 64,
        slow_rollouts: int = 256,
        floor: float = 0.25,
    ) -> None:
        self._shares = normalise(mixture)
        self._tolerance = tolerance
        self._fast_rollouts = fast_rollouts
        self._slow_rollouts = slow_rollouts
        self._floor = floor
        self._progress = {c: Progress() for c in self._shares if c.is_safety}

    def shares(self) -> dict[Category, float]:
        saturated = {c for c in self._progress if self.is_saturated(c)}
        learning = [c for c in self._progress if c not in saturated]
        if not learning:
            return dict(self._shares)
        given = (1 - self._floor) * sum(self._shares[c] for c in saturated)
        gain = 1 + given / sum(self._shares[c] for c in learning)
        factors = dict.fromkeys(saturated, self._floor) | dict.fromkeys(learning, gain)
        return {c: share * factors.get(c, 1.0) for c, share in self._shares.items()}

    def is_saturated(self, category: Category) -> bool:
        """True where `category` has been seen long enough and no longer moves."""
        progress = self._progress[category]
        return (
            progress.num_rollouts >= self._slow_rollouts
            and progress.slow - progress.fast < self._tolerance
            and progress.fast <= progress.best + self._tolerance
        )

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Take in the costs of one iteration; costs that are not finite tell nothing."""
        unsafe: defaultdict[Category, list[bool]] = defaultdict(list)
        for item in scored:
            if item.rollout.category in self._progress and math.isfinite(item.cost):
                unsafe[item.rollout.category].append(is_unsafe(item.cost))
        for category, flags in unsafe.items():
            self._update(self._progress[category], sum(flags) / len(flags), len(flags))

    def _update(self, progress: Progress, fraction: float, count: int) -> None:
        if progress.num_rollouts == 0:
            progress.fast = progress.slow = fraction
        # `count` steps of a moving average towards one value, in closed form.
        progress.fast += (1 - (1 - 1 / self._fast_rollouts) ** count) * (fraction - progress.fast)
        progress.slow += (1 - (1 - 1 / self._slow_rollouts) ** count) * (fraction - progress.slow)
        progress.num_rollouts += count
        if progress.num_rollouts >= self._slow_rollouts:
            progress.best = min(progress.best, progress.fast)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; `best` is null while the averages fill, as JSON has no infinity."""
        return {
            category.value: {
                **asdict(progress),
                "best": None if math.isinf(progress.best) else progress.best,
            }
            for category, progress in self._progress.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for category in self._progress:
            saved = state[category.value]
            best = math.inf if saved["best"] is None else saved["best"]
            self._progress[category] = Progress(**{**saved, "best": best})
