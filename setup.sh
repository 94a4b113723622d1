#!/usr/bin/env bash
# Set up .venv for `make`: `./setup.sh train` to run things, `./setup.sh dev` to test and lint as well.
#
# Safe to cut short and to call again at any time: a set-up that was interrupted, a .venv that was moved and one whose
# Python is gone are noticed and built anew; one that is complete costs a few milliseconds.
# Reads PYTHON (which interpreter) and TORCH_INDEX (an additional package index for torch). Knows nothing of the code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

EXTRA=${1:?usage: ./setup.sh train|dev}
VENV=$PWD/.venv                            # activate scripts and shebangs hold this path, so a moved .venv is a broken one
MIN_MINOR=11

say() { printf 'set-up: %s\n' "$*" >&2; }
die() { printf 'set-up: %s\n' "$@" >&2; exit 1; }

# -- is there anything to do? ------------------------------------------------------------------------------------------
fingerprint() { # of all that decides what belongs into .venv
    printf '%s\n' "$VENV"
    cat pyproject.toml constraints.txt setup.sh
}
FINGERPRINT=$(fingerprint | sha256sum | cut -d' ' -f1)

stamp() { printf '%s/.set-up-%s' "$VENV" "$1"; }
is_done() { # $1 = extra; dev holds all that train holds
    local extra
    for extra in "$1" dev; do
        [[ -f $(stamp "$extra") && $(<"$(stamp "$extra")") == "$FINGERPRINT" ]] && return 0
    done
    return 1
}
venv_works() {
    [[ -x $VENV/bin/python && ! -e $VENV/.unfinished ]] || return 1
    grep -qsF "$VENV" "$VENV/bin/activate" || return 1
    "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, '$MIN_MINOR'))' 2>/dev/null || return 1
    [[ -z ${PYTHON:-} ]] || [[ $(version_of "$PYTHON") == "$(version_of "$VENV/bin/python")" ]]
}

# -- which Python? -----------------------------------------------------------------------------------------------------
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, '$MIN_MINOR'))' 2>/dev/null; }

choose_python() { # prints a working interpreter: the one asked for, the system's, else the newest
    local name
    if [[ -n ${PYTHON:-} ]]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python of at least 3.$MIN_MINOR"
        printf '%s' "$PYTHON" && return
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        # Asked to run, since version managers leave stubs that only print an error.
        if new_enough "$name"; then printf '%s' "$name" && return; fi
    done
    return 1
}
may_apt() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }
apt_get() {
    say "installing $* with apt-get"
    local install=(apt-get install -y -qq --no-install-recommends "$@")
    export DEBIAN_FRONTEND=noninteractive
    { "${install[@]}" || { apt-get update -qq && "${install[@]}"; }; } >/dev/null </dev/null || die "apt-get could not install $*"
}
need_python() { # prints an interpreter that can make virtual environments; gets what the system lacks
    local python package
    if ! python=$(choose_python); then
        [[ -z ${PYTHON:-} ]] || exit 1
        may_apt || die "Python 3.$MIN_MINOR or newer is needed; on Debian or Ubuntu: sudo apt-get install python3 python3-venv" \
            "or name one: make PYTHON=/path/to/python3.12 …"
        apt_get python3 python3-venv
        python=$(choose_python) || die "this system's python3 is older than 3.$MIN_MINOR; install a newer one and say make PYTHON=…"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        may_apt || die "$python cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install $package"
        apt_get "$package"
    fi
    printf '%s' "$python"
}

# -- installing --------------------------------------------------------------------------------------------------------
pip_install() { # pip's own words, only the few that say how far it is
    "$VENV/bin/python" -m pip --disable-pip-version-check install --progress-bar off --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$@" |
        sed -nE -e 's/^ *(Downloading [^ ]+ \([0-9.]+ [MG]B\)).*/  \1/p' -e 's/^Installing collected.*/  unpacking …/p' >&2
}
build_venv() {
    local python
    python=$(need_python)
    say "making .venv with $python ($(version_of "$python"))"
    rm -rf "$VENV"
    mkdir "$VENV"
    touch "$VENV/.unfinished"              # removed when all is in place; whoever finds it starts over
    "$python" -m venv "$VENV"
}

is_done "$EXTRA" && venv_works && exit 0
exec 9<.
flock 9                                    # two makes at once: the second waits and finds the work done
is_done "$EXTRA" && venv_works && exit 0

venv_works || build_venv
touch "$VENV/.unfinished"
rm -f "$(stamp train)" "$(stamp dev)"
say "installing launchyard[$EXTRA]: about 200 MB with a CPU build of torch, some GB with the CUDA build that PyPI has for Linux"
# The build backends come from the same pins, so nothing is fetched that constraints.txt does not name: ours, and the one
# of packages that have no wheel, which a Python from 3.12 on lacks and an older one has in a version that makes none.
pip_install hatchling setuptools
pip_install --no-build-isolation --editable ".[${EXTRA/#train/train,slurm}]"  # SLURM is submitted to with one small package
rm "$VENV/.unfinished"
printf '%s' "$FINGERPRINT" >"$(stamp "$EXTRA")"
say "done after $SECONDS s; to have \`launch\` at hand: source .venv/bin/activate"
