"""Builds the compiled core and the lookout where that is possible; everything else stands in pyproject.toml."""

import os

from setuptools import Extension, setup

extensions = []
if not os.environ.get("LOOPWATCH_PURE"):
    try:
        from Cython.Build import cythonize
    except ImportError:
        pass  # the plain core does the same
    else:
        extensions = cythonize(
            [
                Extension(f"loopwatch.{name}", [source], optional=True, extra_compile_args=["-O3", "-g0"])
                for name, source in (("_core", "loopwatch/core.py"), ("_lookout", "loopwatch/_lookout.pyx"))
            ],
            build_dir="build",
            compiler_directives={
                "language_level": 3,
                "boundscheck": False,
                "wraparound": False,
                "auto_pickle": False,
            },
        )

setup(ext_modules=extensions)
