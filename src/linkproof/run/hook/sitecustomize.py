"""Imported by every Python that `linkproof run` has under it, of any version. Puts the hook in, then does what would have been done without it.

The sitecustomize that stands behind this one on the path, if any, is run as if it were the first; what it raises, `site` reports as ever.
"""

import sys

if sys.version_info >= (3, 10):  # noqa: UP036  the Python of a command may be any
    import linkproof_run_hook  # type: ignore[import-not-found]

    linkproof_run_hook.install()

if sys.version_info >= (3, 4):  # noqa: UP036
    from importlib.machinery import PathFinder
    from os.path import dirname

    spec = PathFinder.find_spec(__name__, [p for p in sys.path if p != dirname(__file__)])  # noqa: PTH120
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[__name__])
