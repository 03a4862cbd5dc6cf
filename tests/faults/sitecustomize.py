"""Faults put into every process of a command from outside: its folder goes first on PYTHONPATH.

`FAULT=module:Class.method:body` wraps one method of the module when that is imported. The body is a
line of Python that runs before each call, with `self`, `args`, `kwargs` and `state`, a folder that
the processes share (`FAULT_STATE`).
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path


class _Wrap(importlib.abc.Loader):
    def __init__(self, loader, target, body):
        self._loader, self._target, self._body = loader, target, compile(body, "<fault>", "exec")

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        owner, name = self._target.split(".")
        owner = getattr(module, owner)
        original, body, state = getattr(owner, name), self._body, Path(os.environ["FAULT_STATE"])

        @functools.wraps(original)
        def faulty(self, *args, **kwargs):
            exec(body, {"self": self, "args": args, "kwargs": kwargs, "state": state})
            return original(self, *args, **kwargs)

        setattr(owner, name, faulty)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, fault):
        self._module, self._target, self._body = fault.split(":", 2)

    def find_spec(self, name, path, target=None):
        if name != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = _Wrap(spec.loader, self._target, self._body)
        return spec


if "FAULT" in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ["FAULT"]))
