"""How much tensor memory a call needs at its worst moment, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes in tensors at one time that did not exist before; what kernels need inside them
    is not seen."""
    with _LiveStorages() as storages:
        call()
    peak: int = storages.peak
    return peak


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        # What an operation is given without our having seen it made was there before.
        self._known.update(_storages((args, kwargs)))
        made = func(*args, **kwargs)
        for storage in _storages(made):
            if storage not in self._known:
                self._known.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return made

    def _forget(self, num_bytes: int) -> None:
        self._live -= num_bytes


def _storages(tree: object) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
