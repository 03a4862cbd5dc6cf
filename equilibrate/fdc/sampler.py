"""Prompts in the wanted mixture of classes, without replacement, resumable to the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from equilibrate.errors import DataError
from equilibrate.fdc.mixture import Apportionment
from equilibrate.fdc.schedules import MixtureSchedule
from equilibrate.types import Category, Prompt, PromptBatch, ScoredRollout

WhenShort = Literal["error", "oversample"]


class ClassPool:
    """The prompts of one class in a seeded order, each once per pass.

    Args: file: whose they are, where each file of a class has its share.
    """

    def __init__(
        self, category: Category, prompts: Sequence[Prompt], seed: int, file: str = ""
    ) -> None:
        self._category = category
        self._name = f"class {category.value}" + (f" of {file}" if file else "")
        self._prompts = prompts
        self._seed = seed
        self._passes = 0
        self._remaining: list[int] = []
        self._start_pass(avoid=set())

    def take(self, count: int, *, may_repeat: bool) -> list[Prompt]:
        """The next `count` prompts, all different as long as the class has that many.

        Raises: DataError if the class is exhausted and may not be gone through again.
        """
        taken: list[int] = []
        while len(taken) < count:
            if not self._remaining:
                if not may_repeat:
                    raise DataError(
                        f"{self._name} ({len(self._prompts)} prompts) is exhausted; add prompts "
                        "of it or set fdc.when_short=oversample"
                    )
                self._start_pass(avoid=set(taken))
            wanted = count - len(taken)
            taken += self._remaining[:wanted]
            self._remaining = self._remaining[wanted:]
        return [self._prompts[index] for index in taken]

    def require(self, needed: int) -> None:
        """Raises: DataError if the class has fewer prompts than that."""
        if len(self._prompts) < needed:
            raise DataError(
                f"{self._name} ({len(self._prompts)} prompts) must have at least {needed} for its "
                "share of the run; add prompts, lower its share or set fdc.when_short=oversample"
            )

    def _start_pass(self, avoid: set[int]) -> None:
        # The class name, not its hash: Python's string hash differs between processes.
        name = int.from_bytes(self._category.value.encode(), "big")
        generator = np.random.default_rng([self._seed, name, self._passes])
        order = generator.permutation(len(self._prompts)).tolist()
        # A prompt already in this batch comes last: another one teaches more.
        self._remaining = sorted(order, key=lambda index: index in avoid)
        self._passes += 1

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self._passes, "remaining": list(self._remaining)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._passes = state["passes"]
        self._remaining = list(state["remaining"])


class SharedPool:
    """The prompts of one class from several files, by the shares of the files."""

    def __init__(
        self,
        category: Category,
        prompts: Sequence[Prompt],
        seed: int,
        shares: Mapping[str, float],
    ) -> None:
        files = {
            number: list(shares)[number] for number in sorted({p.file_number for p in prompts})
        }
        total = sum(shares[file] for file in files.values())
        self._shares = {number: shares[file] / total for number, file in files.items()}
        self._apportionment: Apportionment[int] = Apportionment()
        self._pools = {
            number: ClassPool(category, [p for p in prompts if p.file_number == number], seed, file)
            for number, file in files.items()
        }

    def take(self, count: int, *, may_repeat: bool) -> list[Prompt]:
        """As of `ClassPool`; of each file within 1 of its share of all so far."""
        counts = self._apportionment.next_counts(self._shares, count)
        return [
            prompt
            for number, wanted in counts.items()
            for prompt in self._pools[number].take(wanted, may_repeat=may_repeat)
        ]

    def require(self, needed: int) -> None:
        """As of `ClassPool`, by what `take` will hand out of each file."""
        counts = Apportionment[int]().next_counts(self._shares, needed)
        for number, pool in self._pools.items():
            pool.require(counts[number])

    def state_dict(self) -> dict[str, Any]:
        return {
            "pools": {str(number): pool.state_dict() for number, pool in self._pools.items()},
            "apportionment": self._apportionment.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, pool in self._pools.items():
            pool.load_state_dict(state["pools"][str(number)])
        self._apportionment.load_state_dict(state["apportionment"], int)


class FdcSampler:
    """Feeds each iteration prompts whose classes follow the schedule.

    With a fixed schedule each class is, after any number of batches, within 1 of its share of all
    prompts so far. Implements `equilibrate.interfaces.PromptSampler`.

    Args:
        prompts: training prompts of all classes; classes outside the schedule are left aside.
        schedule: shares of the classes.
        prompts_per_iteration: prompts of one batch.
        copies: responses per prompt, handed on in the batch.
        iterations: length of the run, to see beforehand whether a class is too small.
        when_short: "error" refuses a run that needs a prompt twice by the shares at its start,
            "oversample" shuffles anew.
        file_shares: weight of each file within a class, by the file's name, in the order of the
            files; none: all prompts of a class are alike.
        seed: of the order of the prompts.

    Raises: DataError naming the class that is missing or too small.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        schedule: MixtureSchedule,
        *,
        prompts_per_iteration: int,
        copies: int = 1,
        iterations: int,
        when_short: WhenShort = "oversample",
        file_shares: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._schedule = schedule
        self._prompts_per_iteration = prompts_per_iteration
        self._copies = copies
        self._may_repeat = when_short == "oversample"
        self._seed = seed
        shares = schedule.shares()
        by_class = _by_class(prompts, shares)
        self._pools: dict[Category, ClassPool | SharedPool] = {
            c: SharedPool(c, by_class[c], seed, file_shares)
            if file_shares
            else ClassPool(c, by_class[c], seed)
            for c in shares
        }
        if not self._may_repeat:
            counts = Apportionment[Category]().next_counts(
                shares, prompts_per_iteration * iterations
            )
            for category, needed in counts.items():
                self._pools[category].require(needed)
        self._apportionment: Apportionment[Category] = Apportionment()
        self._num_drawn = dict.fromkeys(Category, 0)
        self._fingerprint = _fingerprint(prompts)

    def next_batch(self, iteration: int) -> PromptBatch:
        shares = self._schedule.shares()
        counts = self._apportionment.next_counts(shares, self._prompts_per_iteration)
        drawn: list[Prompt] = []
        for category, count in counts.items():
            drawn += self._pools[category].take(count, may_repeat=self._may_repeat)
            self._num_drawn[category] += count
        order = np.random.default_rng([self._seed, iteration]).permutation(len(drawn))
        return PromptBatch(
            iteration=iteration, prompts=tuple(drawn[i] for i in order), copies=self._copies
        )

    def observe(self, scored: Sequence[ScoredRollout]) -> None:
        """Let the schedule see the costs of the iteration."""
        self._schedule.observe(scored)

    def realised_mixture(self) -> dict[Category, float]:
        """Share of every class among the prompts so far; the wanted shares before the first."""
        total = sum(self._num_drawn.values())
        if not total:
            return dict.fromkeys(Category, 0.0) | self._schedule.shares()
        return {category: count / total for category, count in self._num_drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; a sampler made with the same arguments continues exactly from it."""
        return {
            "data": self._fingerprint,
            "num_drawn": {c.value: count for c, count in self._num_drawn.items()},
            "pools": {c.value: pool.state_dict() for c, pool in self._pools.items()},
            "apportionment": self._apportionment.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises: DataError if the prompts or the classes differ from those of the saved run."""
        classes = [c.value for c in self._pools]
        if state["data"] != self._fingerprint or list(state["pools"]) != classes:
            raise DataError(
                f"the saved sampler (prompts {state['data']}, classes {', '.join(state['pools'])}) "
                f"must match this run (prompts {self._fingerprint}, classes {', '.join(classes)}); "
                "resume with the same prompts, tokenizer, text settings and fdc.mixture"
            )
        self._num_drawn = {c: state["num_drawn"][c.value] for c in Category}
        for category, pool in self._pools.items():
            pool.load_state_dict(state["pools"][category.value])
        self._apportionment.load_state_dict(state["apportionment"], Category)
        self._schedule.load_state_dict(state["schedule"])


def _by_class(
    prompts: Sequence[Prompt], shares: Mapping[Category, float]
) -> dict[Category, list[Prompt]]:
    by_class: dict[Category, list[Prompt]] = {}
    for prompt in prompts:
        by_class.setdefault(prompt.category, []).append(prompt)
    for category, share in shares.items():
        if category not in by_class:
            available = ", ".join(c.value for c in Category if c in by_class) or "none"
            raise DataError(
                f"fdc.mixture gives class {category.value} a share ({share:.3g}), so the data must "
                f"have prompts of it; available classes: {available}. Give shares to these alone, "
                "as in fdc.mixture={GENERAL: 1.0}, or find the classes with `fdc label`"
            )
    return by_class


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for prompt in prompts:
        # With the ids: another template, or a day in it, makes other prompts of the same text.
        ids = np.array(prompt.token_ids, np.int64).tobytes()
        digest.update(f"{prompt.category.value} {prompt.prompt_id} {len(ids)}\n".encode() + ids)
    return digest.hexdigest()
