"""A real PostgreSQL for the tests: its own data folder and port on 127.0.0.1, run by an ordinary user."""

from __future__ import annotations

import contextlib
import getpass
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile

from tests.serving import free_port


def find_binaries():
    """Return the folder of the newest PostgreSQL's programs, ``None`` if there is none."""
    versions = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = versions[-1] if versions else shutil.which("initdb")
    return pathlib.Path(found).parent if found else None


@contextlib.contextmanager
def postgres():
    """Start a server; yield its address; stop it and delete its data."""
    binaries, port, folder = find_binaries(), free_port(), pathlib.Path(tempfile.mkdtemp(prefix="loopwatch-pg-"))
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to be run by root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    name = "postgres" if as_user else getpass.getuser()

    def run(program, *arguments):
        command = [*as_user, str(binaries / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout

    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        run("initdb", "-A", "trust", "--no-sync")
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", settings, "start")
        yield f"postgresql://{name}@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data/postmaster.pid").exists():
            run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
