# shellcheck shell=bash
# What the tools in this folder share. Source it; it only defines things.

# The checkout, wherever the tool was called from.
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# What the tools build for `onggi` to find.
ASSETS=$REPO/target/share/onggi
# What survives a deleted `target/`: sources, packages, built kernels.
CACHE=${ONGGI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onggi}
# shellcheck disable=SC2034 # used by those who source this
# Parallel jobs of anything that compiles.
JOBS=${ONGGI_JOBS:-$(nproc)}

# The current step, for a person who watches.
step() { printf '==> %s\n' "$*" >&2; }
# A detail under the current step.
note() { printf '    %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need_packages PACKAGE...: installs those Debian packages that are missing.
need_packages() {
    local package missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    [[ $EUID == 0 ]] || die "packages are missing; as root: apt-get install ${missing[*]}"
    step "Installing ${missing[*]}"
    candidate "${missing[0]}" >/dev/null || refresh_apt
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        "${missing[@]}" >/dev/null || die "apt-get could not install ${missing[*]}"
}

# need_rust: a Rust that is new enough for the workspace: the one on PATH, else
# Debian's rustc-web, which takes the place of the older rustc package.
need_rust() {
    local want
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    ! rust_is "$want" || return 0
    need_packages rustc-web cargo-web rustfmt-web rust-web-clippy
    # Another cargo may come earlier on PATH.
    PATH=/usr/bin:$PATH
    rust_is "$want" || die "Rust is too old or missing; this workspace needs $want"
}

# rust_is VERSION: whether cargo and rustc are at least that new.
rust_is() {
    local tool have
    for tool in cargo rustc; do
        have=$("$tool" --version 2>/dev/null | cut -d' ' -f2)
        [[ $have && $(printf '%s\n' "$1" "$have" | sort -V | head -n1) == "$1" ]] || return
    done
}

# download_package NAME[=VERSION] DIR: the .deb into DIR (not installed);
# prints its path. One that is there already is not fetched again.
download_package() {
    local name=${1%%=*} version dir=$2 file partial
    version=$(package_version "$1") || return
    file=$dir/${name}_${version//:/%3a}.deb
    if [[ ! -s $file ]]; then
        partial=$dir/partial.$$
        mkdir -p "$partial"
        # It downloads to where it runs. As root it warns that its sandbox's
        # user can't write there, which is no news.
        if ! (cd "$partial" && apt-get download -qq "$name=$version") >"$partial/log" 2>&1; then
            cat "$partial/log" >&2
            die "apt-get could not download $name $version"
        fi
        mv "$partial"/*.deb "$file"
        rm -r "$partial"
    fi
    printf '%s\n' "$file"
}

# package_version NAME...: the versions that apt would fetch, a line each, or
# the version in NAME=VERSION. (Ask once for many: apt-cache takes a second on
# a machine that keeps no cache of its lists.)
package_version() {
    if [[ $1 == *=* ]]; then
        printf '%s\n' "${1#*=}"
    else
        candidate "$@" || { refresh_apt && candidate "$@"; } || die "apt does not know all of: $*"
    fi
}

# The versions of packages that apt would install; fails if it does not know
# one, as on a fresh machine, whose package lists were never fetched.
candidate() {
    local versions
    mapfile -t versions < <(apt-cache policy "$@" | sed -n 's/^  Candidate: \([^(].*\)/\1/p')
    ((${#versions[@]} == $#)) && printf '%s\n' "${versions[@]}"
}

refresh_apt() {
    step "Fetching apt's package lists"
    apt-get update -qq >/dev/null || die "apt-get update failed"
}

# hash_of FILE-OR-TEXT...: one short hash over the contents of the files and
# over the words that are not files; the key of everything in the cache.
hash_of() {
    local input
    for input in "$@"; do
        if [[ -f $input ]]; then sha256sum <"$input"; else printf '%s\n' "$input"; fi
    done | sha256sum | cut -c1-16
}

# publish FILE NAME: puts FILE into the assets as NAME in one step, so that
# nobody ever sees half a file. The copy keeps holes; one that is there stays.
publish() {
    local to=$ASSETS/$2
    [[ -e $to && $(stat -c %s.%Y "$1") == $(stat -c %s.%Y "$to") ]] && return
    mkdir -p "$ASSETS"
    cp --reflink=auto --sparse=always --preserve=timestamps "$1" "$to.$$"
    mv -f "$to.$$" "$to"
}

# only_one NAME: waits until no other run of the tool NAME is at work in the
# cache; the lock goes with this process.
only_one() {
    mkdir -p "$CACHE"
    exec {ONLY_ONE}>"$CACHE/$1.lock"
    flock -n "$ONLY_ONE" && return
    note "another $1 is running; waiting for it"
    flock "$ONLY_ONE"
}

# in_linux_host COMMAND [ARG...]: runs it where /dev/kvm boots Linux guests: here
# if the CPU can, else in an emulated host. A /dev/kvm without svm or vmx below
# it runs no more than a guest made for it.
in_linux_host() {
    if grep -qwE 'svm|vmx' /proc/cpuinfo && [[ -w /dev/kvm ]]; then
        step "Running on this machine's /dev/kvm"
        "$@"
    else
        step "This machine's CPU offers no svm or vmx: running in an emulated host that has it"
        "$REPO/tools/bed" x86_64 --timeout 1800 -- "$@"
    fi
}
