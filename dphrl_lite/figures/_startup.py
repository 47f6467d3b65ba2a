"""`nbformat` is loaded when it is used: plotly imports it on start, for `figure.show()` alone, and takes longer than plotly."""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec


def load_later(name: str):
    """Put module `name` where imports find it; it is loaded by the first use of anything in it."""
    spec = None if name in sys.modules else find_spec(name)
    if spec:
        spec.loader = LazyLoader(spec.loader)
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


load_later("nbformat")
