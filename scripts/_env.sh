# Shared by the scripts beside it: finds interpreters and makes an environment for each. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUPPORTED="3.11 3.12 3.13"
PROGRESS_SECONDS=10 # between two lines of progress where there is no terminal

# Print a working interpreter of version $1, or nothing.
find_python() {
    local candidate
    for candidate in "python$1" python3 "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            "$candidate" -c "import sys; print(sys.executable)"
            return
        fi
    done
}

# Print the oldest supported interpreter that is there; fail with what to do if there is none.
any_python() {
    local version python
    for version in $SUPPORTED; do
        python=$(find_python "$version")
        if [ -n "$python" ]; then
            echo "$python"
            return
        fi
    done
    echo "No Python $SUPPORTED was found on the PATH. Install one and try again." >&2
    return 1
}

# Print what keeps the interpreter $1 from compiling the core, or nothing.
why_not_compiled() {
    if ! command -v "${CC:-cc}" >/dev/null && ! { [ -z "${CC:-}" ] && command -v gcc >/dev/null; }; then
        echo "there is no C compiler (${CC:-cc}); on Debian: apt-get install gcc libc6-dev"
    elif ! "$1" -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')" 2>/dev/null; then
        echo "Python's headers are missing; on Debian: apt-get install python3-dev"
    fi
}

# Print all that the environment for the interpreter $1 depends on: if any of it changes, it is made anew.
# The folder and the interpreter are among it, as scripts in an environment name both.
stamp_of() {
    local sources=(pyproject.toml setup.py loopwatch/core.py loopwatch/_core.pxd loopwatch/_lookout.pyx scripts/_env.sh)
    cksum "${sources[@]}"
    "$1" -c "import sys; print(sys.executable, sys.version)"
    echo "$PWD ${LOOPWATCH_REQUIRE_COMPILED:-} $(why_not_compiled "$1")"
}

# Show the lines that come in as progress: one that changes on a terminal, else one now and then.
show_progress() {
    local line shown=0
    while IFS= read -r line; do
        if [ -t 2 ]; then
            printf '\r\033[K  %4d s  %.60s' "$SECONDS" "$line" >&2
        elif ((SECONDS - shown >= PROGRESS_SECONDS)); then
            shown=$SECONDS
            printf '  %4d s  %.60s\n' "$shown" "$line" >&2
        fi
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
}

# Fill the folder $2 with an environment of the interpreter $3 and the extra $1; fail if any of it fails.
# Called where `set -e` has no effect, so each step says what follows if it fails.
fill_env() {
    local extra=$1 folder=$2 python=$3 log=$2.log
    rm -rf "$folder" || return 1
    "$python" -m venv "$folder" >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        echo "Could not make an environment with $python. On Debian: apt-get install python3-venv" >&2
        return 1
    }
    # A core that was compiled from other sources would be taken for the one of these.
    rm -f "loopwatch/_"*"$("$python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")" || return 1
    # The core is compiled even if this run is not to use it: LOOPWATCH_PURE would leave it out.
    env -u LOOPWATCH_PURE "$folder/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off -e ".[$extra]" 2>&1 |
        tee -a "$log" | show_progress || {
        tail -n 40 "$log" >&2
        echo "Could not install what is needed into $folder. The whole output is in $log. Try again: it starts afresh." >&2
        return 1
    }
}

# Make .venv/$1-VERSION for the interpreter $2 with the extra $1 of this project; print its folder.
# It is made anew when what it depends on has changed, or when it was not finished. Run it in a subshell, as in
# folder=$(make_env …): only one at a time makes environments, until that subshell and all it started have ended.
make_env() {
    local extra=$1 python=$2 folder stamp lock
    mkdir -p .venv || return 1
    exec {lock}>.venv/lock
    if command -v flock >/dev/null && ! flock --nonblock "$lock"; then
        echo "Another process makes an environment here; waiting for it ..." >&2
        flock "$lock" || return 1
    fi
    folder=.venv/$extra-$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])") || return 1
    stamp=$(stamp_of "$python") || return 1
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Making $folder (once; it takes a minute or two) ..." >&2
        SECONDS=0
        fill_env "$extra" "$folder" "$python" || return 1
        echo "$stamp" >"$folder/stamp" || return 1 # last: without it the environment counts as not made
        echo "Made $folder in $SECONDS s." >&2
    fi
    echo "$folder"
}

# Say which core the environment $1 of the interpreter $2 uses and, where it is the plain one, why.
say_core() {
    local core why
    core=$("$1/bin/python" -c "from loopwatch.hot import CORE; print(CORE)") || return 1
    why=$(why_not_compiled "$2")
    [ -z "${LOOPWATCH_PURE:-}" ] || why="LOOPWATCH_PURE is set"
    [ "$core" = plain ] || why=""
    echo "Core: $core${why:+, since $why}"
}
