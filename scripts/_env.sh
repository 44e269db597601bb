# What the scripts share, to be sourced: goes to the project's folder and keeps environments up to date.
# Needs nothing but a Python; uv is installed into each environment.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root" # uv reads its overrides from the pyproject.toml of the folder it is started in
venv=$root/.venv
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
unset PYTHONDONTWRITEBYTECODE # each process that a test starts would compile every library anew

# Prints the path of a Python to make environments with; never that of an environment which happens to be active.
find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$candidate" -c '
import ensurepip, sys, venv
if sys.version_info < (3, 11): sys.exit(1)
print(sys._base_executable)' 2>/dev/null; then
            return
        fi
    done
    echo "apflow needs Python 3.11 or newer with its venv module (on Debian: the package python3-venv);" \
        "none was found on PATH." >&2
    return 1
}

# ensure_env FOLDER NAME ARGUMENTS...: makes FOLDER an environment that holds what `uv pip install ARGUMENTS` installs.
# NAME stands for the ARGUMENTS. Installs nothing when that was done before with the same pyproject.toml in the same
# place. Then FOLDER's programs come first on PATH.
ensure_env() {
    local folder=$1 name=$2 stamp=$1/.apflow-$2 now python
    shift 2
    now=$root$'\n'$*$'\n'$(<pyproject.toml)
    python=$(find_python)
    exec 9>"$folder.lock"
    # The lock belongs to the file that descriptor 9 stands for, so it outlives this Python; bash alone has no lock.
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! up_to_date "$stamp" "$now"; then
        echo "Installing into ${folder##*/} ($name) ..." >&2
        if [[ $(head -n 1 "$folder/.apflow-root" 2>/dev/null) != "$root" ]] || ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
            "$python" -m venv --clear "$folder"
            echo "$root" >"$folder/.apflow-root"
        fi
        rm -f "$stamp"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
        "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" "$@"
        printf '%s\n' "$now" >"$stamp"
    fi
    exec 9>&-
    export PATH="$folder/bin:$PATH"
}

up_to_date() {
    [[ -f $1 && $(<"$1") == "$2" ]]
}
