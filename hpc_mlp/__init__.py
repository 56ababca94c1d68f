"""hpc-mlp: from a ZIP of class-labelled images to a fair comparison of classifiers.

import hpc_mlp

hpc_mlp.convert("photos.zip", "shards")
runs = hpc_mlp.train("shards", variants="all", seeds=range(3))
run = hpc_mlp.load_run(runs[0].path)
for prediction in hpc_mlp.predict(run, "cat.jpg"):
    print(prediction.name, prediction.top(3))
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hpc_mlp._version import __version__ as __version__

if TYPE_CHECKING:
    from hpc_mlp.api import convert, evaluate, export, load_run, predict, train

__all__ = ["convert", "evaluate", "export", "load_run", "predict", "train"]


class _Package(ModuleType):
    """Looks the functions of the API up when they are asked for, so that `import hpc_mlp` imports nothing else.

    `train`, `predict` and `export` are submodules too (`python -m hpc_mlp.train`). Importing one would set the
    package's attribute of that name to the module; here the name stays the function's. The modules are where
    imports look for them, in `sys.modules`.
    """

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            return getattr(import_module("hpc_mlp.api"), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package
