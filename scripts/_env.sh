# Shared by the scripts beside it: finds interpreters and makes an environment for each. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SUPPORTED="3.11 3.12 3.13"

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

# Make .venv/$1-VERSION for the interpreter $2 with the extra $1 of this project; print its folder.
# It is made anew when what it depends on, or what is compiled, has changed.
make_env() {
    local extra=$1 python=$2 folder stamp
    folder=.venv/$extra-$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])")
    stamp=$(cat pyproject.toml setup.py loopwatch/core.py loopwatch/_core.pxd loopwatch/_lookout.pyx scripts/_env.sh | cksum)
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Making $folder (once; it takes a minute) ..." >&2
        rm -rf "$folder"
        "$python" -m venv "$folder" >&2 || {
            echo "Could not make an environment with $python. On Debian: apt-get install python3-venv" >&2
            return 1
        }
        "$folder/bin/python" -m pip install -qq --disable-pip-version-check -e ".[$extra]" >&2
        echo "$stamp" >"$folder/stamp"
    fi
    echo "$folder"
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
