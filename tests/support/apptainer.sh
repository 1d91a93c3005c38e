#!/usr/bin/env bash
# Apptainer on a Debian machine that has no package of it, for the tests; as root.
#
#   tests/support/apptainer.sh install     what is missing of it: Apptainer, mmdebstrap, subordinate ids; again: nothing to do
#
# Only Debian's unstable branch has the package, built against a newer libc. So the package is unpacked beside copies of
# the libraries that it was built against, private to it ($GNNSCALE_APPTAINER, default /opt/apptainer), and the rest of
# the machine stays as it is. Packages come from where the machine's own apt configuration says.
set -euo pipefail
. "$(dirname "$0")/debian.sh"
PRIVATE=${GNNSCALE_APPTAINER:-/opt/apptainer}

mirror() { # where Debian's packages come from here; of its security updates there are no unstable ones
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -E '^(URIs:|deb )' | grep -oE '[a-z+]+:/[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ' || true
}

unpack() { # the package and its libraries, with an apt that knows of nothing else
    local work architecture
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    chmod 755 "$work"
    mkdir -p "$work"/{lists/partial,cache/archives/partial,empty,got,libraries,package}
    : >"$work/status"
    local uri
    uri=$(mirror)
    [ -n "$uri" ] || { echo "apptainer.sh: no Debian archive in apt's configuration" >&2; return 1; }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri sid main" >"$work/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/empty"
        -o "Dir::Etc::preferencesparts=$work/empty" -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status"
        -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$work/got" && "${apt[@]}" download apptainer libc6 libseccomp2 libsqlite3-0 libgcc-s1)
    local file
    for file in "$work"/got/lib*.deb; do dpkg-deb -x "$file" "$work/libraries"; done
    dpkg-deb -x "$work"/got/apptainer_*.deb "$work/package"
    architecture=$(uname -m)-linux-gnu
    mkdir -p "$PRIVATE/lib"
    find "$work/libraries" -path "*/$architecture/*" -name '*.so*' -exec cp -a -t "$PRIVATE/lib" {} +
    local loader program
    loader=$(basename "$(ls "$PRIVATE"/lib/ld-linux-*.so.* | head -n 1)")
    for program in bin/apptainer "lib/$architecture/apptainer/bin/starter"; do
        patchelf --set-interpreter "$PRIVATE/lib/$loader" --force-rpath --set-rpath "$PRIVATE/lib" "$work/package/usr/$program"
    done
    rm -f "$work/package/usr/lib/$architecture/apptainer/bin/starter-suid" # containers here are unprivileged
    cp -a "$work/package/." /
}

subordinate_ids() { # a range for this user, so that a build may have files of several owners
    local file user
    user=$(id -un)
    for file in /etc/subuid /etc/subgid; do
        touch "$file"
        grep -q "^$user:" "$file" || echo "$user:100000:65536" >>"$file"
    done
}

install() {
    packages ca-certificates fakeroot fuse-overlayfs mmdebstrap patchelf squashfs-tools squashfuse uidmap
    apptainer --version >/dev/null 2>&1 || unpack
    subordinate_ids
    [ ! -e /dev/fuse ] || chmod 666 /dev/fuse
    apptainer --version
}

case ${1:-} in
install) install ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
