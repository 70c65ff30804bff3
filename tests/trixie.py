"""Servers that Debian ships since trixie, or newer ones there: their packages are fetched and only unpacked."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess

import pytest

from tests.serving import ROOT

KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def fetched(package, binary):
    """Return the path of a package's binary, fetched once into ``.cache/``. Fails in CI, else skips, without it."""
    folder = ROOT / ".cache" / package
    unpacked = folder / "root/usr/bin" / binary
    if not unpacked.exists() and shutil.which("apt-get") and KEYRING.exists():
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            _fetch(package, folder)
    if not unpacked.exists():
        message = f"no `{binary}`: it is in {package} of Debian trixie, and could not be fetched"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return unpacked


def _fetch(package, folder):
    """Ask Debian's trixie for the package, with lists and state of our own."""
    for part in ("lists/partial", "cache/archives/partial", "state", "root"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n")
    (folder / "state/status").touch()
    options = [
        f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null", f"Dir::State={folder}/state",
        f"Dir::State::Lists={folder}/lists", f"Dir::State::status={folder}/state/status",
        f"Dir::Cache={folder}/cache", "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", package], check=True, cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
