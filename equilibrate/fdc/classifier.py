"""The class of a prompt by a classifier trained on labelled prompts, in seconds and on a CPU.

Members read words and characters (TF-IDF), and where a model is at hand its embeddings. A logistic
regression on what the members say of prompts they did not learn from weighs them, and its
probabilities are the confidence. scikit-learn is imported where it is used: all else runs without.
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
_TEMPERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far the decision leans to rare classes: 0 takes the likeliest class, 1 ignores how frequent
each class is."""


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


MEMBERS: dict[str, tuple[Callable[[], Any], str]] = {
    "words": (_words, "texts"),
    "plane": (_plane, "vectors"),
    "neighbours": (_neighbours, "vectors"),
}
"""Makes the member; which of `Inputs` it reads."""


def require_library() -> None:
    """Raises: ResourceError where scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise ResourceError(
            "the package `scikit-learn` trains the local labeller and is not installed; "
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
    """`fit` on labelled prompts, then `predict`."""

    seed: int = 0
    classes: list[Category] = field(default_factory=list)
    _members: list[tuple[str, Any]] = field(default_factory=list)
    _weights: Any = None
    _leaning: NDArray[np.float64] | None = None

    def fit(self, inputs: Inputs, labels: Sequence[Category]) -> Classifier:
        """Raises: DataError with fewer than two classes, or too few prompts of one."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_predict

        self.classes, y = encode(labels)
        chosen = {n: m for n, m in MEMBERS.items() if getattr(inputs, m[1]) is not None}
        split = folds(list(inputs.texts), y, self.seed)
        said = np.zeros((len(y), 0))
        self._members = []
        for make, key in chosen.values():
            data = getattr(inputs, key)
            unseen = np.zeros((len(y), len(self.classes)))
            for learn, test in split:
                unseen[test] = _scores(make().fit(data[learn], y[learn]), data[test])
            said = np.hstack([said, unseen])
            self._members.append((key, make().fit(data, y)))
        weights = LogisticRegression(max_iter=2000)
        chances = cross_val_predict(weights, said, y, cv=split, method="predict_proba")
        self._leaning = _best_leaning(chances, y)
        self._weights = weights.fit(said, y)
        return self

    def chances(self, inputs: Inputs) -> NDArray[np.float64]:
        """[N, classes], rows sum to 1."""
        said = [_scores(member, getattr(inputs, key)) for key, member in self._members]
        result: NDArray[np.float64] = self._weights.predict_proba(np.hstack(said))
        return result

    def predict(self, inputs: Inputs) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Number of the class in `classes`, and the probability that it is right."""
        chances = self.chances(inputs)
        assert self._leaning is not None
        best = (chances * self._leaning).argmax(axis=1)
        return best, chances[np.arange(len(best)), best]


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


def _best_leaning(chances: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Factors of the classes by which unseen prompts have the best macro-F1."""
    share = np.bincount(y) / len(y)
    tried: list[NDArray[np.float64]] = [share**-temper for temper in _TEMPERS]
    return max(tried, key=lambda factors: macro_f1(y, (chances * factors).argmax(axis=1)))


def f1_by_class(y: NDArray[np.int64], said: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """[num]; 0 for a class that is neither there nor said."""
    hits = np.bincount(y[y == said], minlength=num)
    total = np.bincount(y, minlength=num) + np.bincount(said, minlength=num)
    return np.divide(2.0 * hits, total, out=np.zeros(num), where=total > 0)


def macro_f1(y: NDArray[np.int64], said: NDArray[np.int64]) -> float:
    """Unweighted mean of the F1 of the classes in `y`."""
    scores = f1_by_class(y, said, int(max(y.max(), said.max())) + 1)
    return float(scores[np.unique(y)].mean())
