"""Builds the compiled core and the lookout where that is possible; everything else stands in pyproject.toml.

LOOPWATCH_REQUIRE_COMPILED=1 makes a build without them fail, with the compiler's message; LOOPWATCH_PURE=1 leaves
them out.
"""

import os
import sys

from setuptools import Extension, setup

SOURCES = {"_core": "loopwatch/core.py", "_lookout": "loopwatch/_lookout.pyx"}


def compiled_parts(*, is_required: bool) -> list[Extension]:
    """Return the extensions to build, none where Cython cannot translate them."""
    extensions = [
        Extension(f"loopwatch.{name}", [source], extra_compile_args=["-O3", "-g0"])
        for name, source in SOURCES.items()
    ]
    try:
        from Cython.Build import cythonize

        extensions = cythonize(
            extensions,
            build_dir="build",
            compiler_directives={
                "language_level": 3,
                "boundscheck": False,
                "wraparound": False,
                "auto_pickle": False,
            },
        )
    except Exception as error:
        if is_required:
            raise
        print(f"loopwatch: the plain core is installed, since Cython failed: {error!r}", file=sys.stderr)
        return []
    for extension in extensions:
        extension.optional = not is_required  # here, since cythonize() returns new extensions without it
    return extensions


def settings() -> tuple[bool, bool]:
    """Return whether to compile, and whether that must succeed."""
    leaves_out, is_required = (bool(os.environ.get(f"LOOPWATCH_{name}")) for name in ("PURE", "REQUIRE_COMPILED"))
    if leaves_out and is_required:
        sys.exit("LOOPWATCH_PURE and LOOPWATCH_REQUIRE_COMPILED exclude each other: unset one of the two.")
    return not leaves_out, is_required


if __name__ == "__main__":
    compiles, is_required = settings()
    setup(ext_modules=compiled_parts(is_required=is_required) if compiles else [])
