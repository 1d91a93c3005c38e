#!/bin/sh
# %post of every image, step by step; what differs between accelerators is in the .def files and in pip's wheels.
#   post.sh cpu|cuda|rocm|xpu
# /opt/gnnscale holds the code and recipe.json, /mnt what pip installs: nothing is fetched by pip in here, so no
# index, proxy or password of the machine that builds comes near the image.
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
accelerator=$1
home=/opt/gnnscale
python=/opt/venv/bin/python

step() { echo "gnnscale: step $*"; }

step "1/6 system packages"
needed="ca-certificates libgomp1 python3 python3-venv"
compilers="g++ libc6-dev binutils" # for one file, and gone again in step 5
if [ "$accelerator" != cpu ]; then # Triton compiles a launcher for each of its kernels: compiler and Python.h stay
    needed="$needed gcc libc6-dev libpython3-dev"
    compilers="g++"
fi
missing=$(for each in $needed $compilers; do dpkg-query -W -f '${Status}' "$each" 2>/dev/null | grep -q 'ok installed' || echo "$each"; done)
if [ -n "$missing" ]; then
    apt-get -qq update
    # shellcheck disable=SC2086
    apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi

step "2/6 Python packages, as constraints.txt pins them"
python3 -m venv /opt/venv
$python -m pip install --quiet --no-index --find-links /mnt -c "$home/constraints.txt" -r "$home/requirements.txt"

step "3/6 the compiled neighbour list"
(cd "$home" && $python setup.py --quiet build_ext --inplace 2>/dev/null && rm -rf build *.egg-info)

# Of DeepSpeed's own C++ and CUDA nothing is built: training uses torch's optimisers and collectives (train/engine.py).
step "4/6 what no stage reads"
site=$(echo /opt/venv/lib/python3.*/site-packages)
rm -rf "$site"/torch/include "$site"/torch/test "$site"/torch/share/cmake
find "$site" -name '*.a' -delete
$python -m compileall -q "$home/gnnscale" "$home/datasets"

step "5/6 no compilers"
# shellcheck disable=SC2086
apt-mark manual $needed >/dev/null # whatever brought it
# shellcheck disable=SC2086
apt-get -qq purge -y --auto-remove $compilers >/dev/null
# Never /tmp or a home: during a build these are directories of the machine that builds.
rm -rf /var/cache/apt/* /var/lib/apt/lists/*

step "6/6 what is in it"
dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | sort >"$home/system.txt"
$python -m pip freeze --all | sort >"$home/python.txt"
$python "$home/containers/identity.py" "$accelerator"
