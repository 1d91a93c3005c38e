#!/bin/sh
# %post of every image, in six steps; the .def files and the wheels hold what differs between accelerators.
#   post.sh cpu|cuda|rocm|xpu
# /opt/gnnscale holds the code and recipe.json, /mnt the wheels that pip installs. Here pip fetches nothing, so that no
# index, proxy or password of the building machine gets into the image.
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
accelerator=$1
home=/opt/gnnscale
python=/opt/venv/bin/python

step() { echo "gnnscale: step $*"; }

step "1/6 system packages"
needed="ca-certificates libgomp1 python3 python3-venv"
compilers="g++ libc6-dev binutils" # to compile two files; removed in step 5
if [ "$accelerator" != cpu ]; then # Triton compiles a launcher for each kernel: it needs a compiler and Python.h
    needed="$needed gcc libc6-dev libpython3-dev"
    compilers="g++"
fi
missing=$(for each in $needed $compilers; do dpkg-query -W -f '${Status}' "$each" 2>/dev/null | grep -q 'ok installed' || echo "$each"; done)
if [ -n "$missing" ]; then
    apt-get -qq update
    # shellcheck disable=SC2086
    apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi

step "2/6 Python packages pinned by constraints.txt"
python3 -m venv /opt/venv
$python -m pip install --quiet --no-index --find-links /mnt -c "$home/constraints.txt" -r "$home/requirements.txt"

step "3/6 the compiled libraries"
(cd "$home" && $python setup.py --quiet build_ext --inplace 2>/dev/null && rm -rf build *.egg-info)

# DeepSpeed's own C++ and CUDA are not built: training uses torch's optimisers and collectives (gnnscale/train/deepspeed_engine.py).
step "4/6 remove files that no stage reads"
site=$(echo /opt/venv/lib/python3.*/site-packages)
rm -rf "$site"/torch/include "$site"/torch/test "$site"/torch/share/cmake
find "$site" -name '*.a' -delete
$python -m compileall -q "$home/gnnscale" "$home/datasets"

step "5/6 remove compilers"
# shellcheck disable=SC2086
apt-mark manual $needed >/dev/null # also what was installed as a dependency
# shellcheck disable=SC2086
apt-get -qq purge -y --auto-remove $compilers >/dev/null
# Never remove /tmp or a home: during a build these are directories of the building machine.
rm -rf /var/cache/apt/* /var/lib/apt/lists/*

step "6/6 list the content"
dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | sort >"$home/system.txt"
$python -m pip freeze --all | sort >"$home/python.txt"
$python "$home/containers/identity.py" "$accelerator"
