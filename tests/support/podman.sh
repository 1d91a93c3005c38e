#!/usr/bin/env bash
# Podman and NERSC's podman-hpc on a Debian machine, for the tests; as root.
#
#   tests/support/podman.sh install     what is missing of them; again: nothing to do
#   tests/support/podman.sh env DIR     the variables with which both keep all of their files below DIR, as lines for a shell
#
# podman-hpc has an environment of its own ($GNNSCALE_PODMAN, default /opt/podman-hpc), with the module files that NERSC
# releases with it. No setting of this machine or of a user's home is read or written.
set -euo pipefail
. "$(dirname "$0")/debian.sh"
PRIVATE=${GNNSCALE_PODMAN:-/opt/podman-hpc}
VERSION=1.2.2 # as on Perlmutter in 2026

podman_hpc() {
    local work source
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    python3 -m venv "$PRIVATE"
    "$PRIVATE/bin/pip" --disable-pip-version-check --quiet install "podman-hpc==$VERSION"
    "$PRIVATE/bin/pip" --disable-pip-version-check --quiet download --no-deps --no-binary :all: -d "$work" "podman-hpc==$VERSION"
    source=$work/source
    mkdir "$source"
    tar -xf "$work"/podman*hpc-*.tar.gz -C "$source" --strip-components 1
    cp -r "$source/etc" "$PRIVATE/"
    install -m 755 "$source/bin/fuse-overlayfs-wrap" "$PRIVATE/bin/"
    mkdir -p "$PRIVATE/hooks.d"
    (cd "$PRIVATE" && bin/python -m podman_hpc.configure_hooks --hooksd "$PRIVATE/hooks.d" >/dev/null)
    squasher
    mkdir -p "$PRIVATE/programs" # the part that belongs on PATH: no other Python
    ln -sf ../bin/podman-hpc ../bin/fuse-overlayfs-wrap ../bin/mksquashfs.static "$PRIVATE/programs/"
    echo "$VERSION" >"$PRIVATE/version"
}

squasher() { # podman-hpc runs a static mksquashfs in the image; Debian has none, so this one brings its libraries
    local tree=$PRIVATE/squasher program=$PRIVATE/bin/mksquashfs.static
    mkdir -p "$tree"
    cp -L "$(command -v mksquashfs)" "$tree/mksquashfs"
    ldd "$tree/mksquashfs" | grep -oE '/[^ ]+' | xargs cp -L -t "$tree"
    cat >"$program" <<'SCRIPT'
#!/bin/bash
# In /sqout, where podman-hpc mounts its store, and which is no part of the image that is packed.
work=$(mktemp -d -p /sqout) || exit 1
sed '1,/^PAYLOAD$/d' "$0" | tar -xz -C "$work"
set -- "${@/#-xattrs-exclude/-no-xattrs}" # an option of release 4.6, and its value
set -- "${@/#security.capability/-no-xattrs}"
"$work"/ld-linux-*.so.* --library-path "$work" "$work/mksquashfs" "$@"
code=$?
rm -rf "$work"
exit $code
PAYLOAD
SCRIPT
    tar -cz -C "$tree" . >>"$program"
    chmod 755 "$program"
}

install_all() {
    packages buildah ca-certificates conmon docker-registry fuse-overlayfs inotify-tools podman python3-venv runc skopeo \
        squashfs-tools squashfuse uidmap
    [ "$(cat "$PRIVATE/version" 2>/dev/null)" = "$VERSION" ] || podman_hpc
    [ ! -e /dev/fuse ] || chmod 666 /dev/fuse
    podman --version
    echo "podman-hpc $VERSION"
}

environment() { # DIR
    local place=$1 run # Podman takes no run directory with more than 50 characters
    run=/tmp/gnnscale-podman-$(cksum <<<"$place" | cut -d ' ' -f 1)
    mkdir -p "$place/squashed" "$place/config"
    cat >"$place/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "$place/tmp"
CONF
    cat >"$place/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$place/storage"
runroot = "$run"
CONF
    echo "export CONTAINERS_CONF='$place/containers.conf' CONTAINERS_STORAGE_CONF='$place/storage.conf'"
    echo "export PODMANHPC_CONFIG_FILE='$place/none.yaml' PODMANHPC_MODULES_DIR='$PRIVATE/etc/modules.d'"
    echo "export PODMANHPC_GRAPH_ROOT='$place/storage' PODMANHPC_RUN_ROOT='$run' PODMANHPC_CONFIG_HOME='$place/config'"
    echo "export PODMANHPC_HOOKS_DIR='$PRIVATE/hooks.d' SQUASH_DIR='$place/squashed' USER='$(id -un)'"
    echo "export PATH='$PRIVATE/programs:$PATH'"
}

case ${1:-} in
install) install_all ;;
env) environment "$(realpath -m "${2:?the directory}")" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
