"""The class of a prompt by a classifier trained on labelled prompts, in seconds and on a CPU.

It reads the embeddings of a model where one is at hand, else words and characters (TF-IDF). How
often it is right on prompts that it did not learn from is its confidence. scikit-learn is imported
where it is used: all else runs without.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.errors import DataError, ResourceError
from equilibrate.types import Category

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors [N, D]."""

NUM_FOLDS = 5
_MIN_ROWS = 10
"""Of one class: two in each fold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Prompts as the members read them."""

    texts: NDArray[np.object_]
    """[N]"""
    vectors: NDArray[np.float32] | None = None
    """[N, D]; None without a model."""

    def rows(self, chosen: NDArray[np.int64]) -> Inputs:
        vectors = None if self.vectors is None else self.vectors[chosen]
        return Inputs(texts=self.texts[chosen], vectors=vectors)


def make_inputs(texts: Sequence[str], embed: Embed | None) -> Inputs:
    array = np.empty(len(texts), dtype=object)
    array[:] = list(texts)
    return Inputs(texts=array, vectors=None if embed is None else embed(texts))


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    return make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        ),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )


def _plane() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Few rows and many correlated columns: a strong pull to 0.
    regression = LogisticRegression(C=1e-3, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), regression)


def _neighbours() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler
    from sklearn.svm import SVC

    # Centred first: the vectors of a language model share one long direction.
    return make_pipeline(StandardScaler(with_std=False), Normalizer(), SVC(class_weight="balanced"))


MEMBERS: dict[str, tuple[Callable[[], Any], ...]] = {
    "texts": (_words,),
    "vectors": (_plane, _neighbours),
}
"""By what they read of `Inputs`. Where there are vectors they are better off without the words."""


def require_library(does: str = "trains the local labeller") -> None:
    """Raises: ResourceError where scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise ResourceError(
            f"the package `scikit-learn` {does} and is not installed; "
            "pip install 'equilibrate[label]'"
        )


def folds(
    texts: Sequence[str], classes: NDArray[np.int64], seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows to test on, `NUM_FOLDS` times.

    Each class has its share in every fold; prompts that differ in case, spaces and punctuation
    alone stay together.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [" ".join(re.findall(r"\w+", text.casefold())) or text for text in texts]
    splitter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(texts)), classes, groups))


@dataclass(slots=True)
class Classifier:
    """`fit` on labelled prompts, then `predict`.

    The members' scores, in their own spread, are averaged with equal weight: weights chosen on a
    thousand noisy labels did worse on unseen ones. All members count each class alike, whatever its
    share; so the class is the best score, and its probability comes from unseen prompts.
    """

    seed: int = 0
    classes: list[Category] = field(default_factory=list)
    _key: str = ""
    _members: list[tuple[Any, float]] = field(default_factory=list)
    _calibration: Any = None

    def fit(self, inputs: Inputs, labels: Sequence[Category]) -> Classifier:
        """Raises: DataError with fewer than two classes, or too few prompts of one."""
        from sklearn.linear_model import LogisticRegression

        self.classes, y = encode(labels)
        self._key = "texts" if inputs.vectors is None else "vectors"
        data = getattr(inputs, self._key)
        split = folds(list(inputs.texts), y, self.seed)
        mean = np.zeros((len(y), len(self.classes)))
        self._members = []
        for make in MEMBERS[self._key]:
            unseen = np.zeros_like(mean)
            for learn, test in split:
                unseen[test] = _scores(make().fit(data[learn], y[learn]), data[test])
            spread = float(unseen.std()) or 1.0
            mean += unseen / spread
            self._members.append((make().fit(data, y), spread))
        self._calibration = LogisticRegression(max_iter=2000).fit(mean, y)
        return self

    def predict(self, inputs: Inputs) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Number of the class in `classes`, and the probability that it is right."""
        data = getattr(inputs, self._key)
        said = [_scores(member, data) / spread for member, spread in self._members]
        total = np.sum(said, axis=0)
        best = total.argmax(axis=1)
        return best, self._calibration.predict_proba(total)[np.arange(len(best)), best]


def encode(labels: Sequence[Category]) -> tuple[list[Category], NDArray[np.int64]]:
    """The classes that occur, in the order of `Category`, and the number of each label in them.

    Raises: DataError with fewer than two classes, or fewer than ten prompts of one.
    """
    counts = Counter(labels)
    classes = [category for category in Category if counts[category]]
    few = [f"{c.value} ({counts[c]})" for c in classes if counts[c] < _MIN_ROWS]
    if len(classes) < 2 or few:
        raise DataError(
            f"labelled prompts ({', '.join(f'{c.value} {counts[c]}' for c in classes) or 'none'}) "
            f"must hold two classes or more with at least {_MIN_ROWS} prompts each; "
            + (f"too few: {', '.join(few)}; label more or leave the class out" if few else "add")
        )
    number = {category: i for i, category in enumerate(classes)}
    return classes, np.array([number[label] for label in labels], dtype=np.int64)


def _scores(member: Any, data: Any) -> NDArray[np.float64]:
    """[N, classes] in the member's own units; of two classes one column and its negative."""
    scores = np.asarray(member.decision_function(data), dtype=np.float64)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def f1_by_class(y: NDArray[np.int64], said: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """[num]; 0 for a class that is neither there nor said."""
    hits = np.bincount(y[y == said], minlength=num)
    total = np.bincount(y, minlength=num) + np.bincount(said, minlength=num)
    scores: NDArray[np.float64] = np.divide(2.0 * hits, total, out=np.zeros(num), where=total > 0)
    return scores
