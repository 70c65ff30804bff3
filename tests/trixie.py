"""Servers that Debian ships since trixie, or newer ones there: their packages are fetched and only unpacked."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from tests.serving import ROOT

KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NOT_A_RELEASE = ("-security", "-updates", "-backports")
FETCH_SECONDS = 120
"""How long each of apt's commands may take."""


def fetched(package, binary):
    """Return the path of a package's binary, fetched once into ``.cache/``. Fails in CI, else skips, without it."""
    unpacked = ROOT / ".cache" / package / "root/usr/bin" / binary
    reason = "" if unpacked.exists() else _fetch(package)
    if reason or not unpacked.exists():
        message = f"no `{binary}`: it is in {package} of Debian trixie, and could not be fetched: {reason}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return unpacked


def mirror_in(index_targets):
    """Return the first mirror of a Debian release in what ``apt-get indextargets`` prints; ``None`` without one."""
    for line in index_targets.splitlines():
        site, origin, release = (*line.split(), "", "", "")[:3]
        if origin == "Debian" and not release.endswith(NOT_A_RELEASE):
            return site
    return None


def _fetch(package):
    """Fetch a package into ``.cache/``, as a whole or not at all; return why it cannot be fetched, else nothing."""
    if shutil.which("apt-get") is None or not KEYRING.exists():
        return "this is no Debian"
    home = ROOT / ".cache" / package
    home.mkdir(parents=True, exist_ok=True)
    wanted = ["--format", "$(SITE) $(ORIGIN) $(RELEASE)", "Created-By: Packages"]
    try:
        mirror = mirror_in(_output("apt-get", "indextargets", *wanted))
        if mirror is None:
            return "apt of this machine knows no mirror of Debian: apt-get update"
        with tempfile.TemporaryDirectory(dir=home) as folder:
            _download(package, mirror, pathlib.Path(folder))
            shutil.rmtree(home / "root", ignore_errors=True)
            (pathlib.Path(folder) / "root").rename(home / "root")
    except subprocess.TimeoutExpired as late:
        return f"{late.cmd[0]} took more than {FETCH_SECONDS} s"
    except (subprocess.CalledProcessError, OSError) as error:
        return f"{error}: {getattr(error, 'stderr', '')}"
    return ""


def _download(package, mirror, folder):
    """Ask Debian's trixie for the package, with lists and state of our own; unpack it."""
    for part in ("lists/partial", "cache/archives/partial", "state", "root"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} trixie main\n")
    (folder / "state/status").touch()
    options = [
        f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null", f"Dir::State={folder}/state",
        f"Dir::State::Lists={folder}/lists", f"Dir::State::status={folder}/state/status",
        f"Dir::Cache={folder}/cache", "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    _output(*apt, "update")
    _output(*apt, "download", package, cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    _output("dpkg-deb", "-x", str(archive), str(folder / "root"))


def _output(*command, cwd=None):
    done = subprocess.run(command, check=True, cwd=cwd, capture_output=True, text=True, timeout=FETCH_SECONDS)
    return done.stdout
