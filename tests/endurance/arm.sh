#!/usr/bin/env bash
# The bundle of another machine on aarch64, emulated: arm.sh [BUNDLE] (root, Debian 12, its network).
#
# Makes a root of Debian's arm64 packages and wheels, verifies a bundle that was made on x86 with
# cmt-bench and with a cross-compiled cmt_check, and holds the answers of cross-compiled C++ to
# images and manifests against those of this machine's Python. PYTHON has this checkout installed
# and pip. All is written to build/arm; Debian's packages come from where this machine takes its own.
set -euo pipefail

root="$(cd "$(dirname "$0")/../.." && pwd)"
python="$(realpath --no-symlinks "${PYTHON:-$root/.venv/bin/python}")"
bundle="${1:+$(realpath "$1")}"
work="$root/build/arm"
release=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
export QEMU_CPU=cortex-a76 # of a Raspberry Pi 5: with dot products, without SVE

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

need() {
  command -v "$1" > /dev/null || { echo "arm.sh needs $1: apt install $2" >&2; exit 2; }
}

mirror_of_this_machine() {
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' \
    | awk -v release="$release" '$2 == release { print $1; exit }'
}

# Of bookworm-backports: ONNX Runtime crashes in bookworm's own qemu 7.2.
fetch_qemu() {
  mkdir -p apt/lists/partial apt/cache/archives/partial
  echo "deb [signed-by=$keyring] $mirror $release-backports main" > apt/sources.list
  local options=(-qq -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd apt && apt-get "${options[@]}" download "qemu-user/$release-backports")
  dpkg-deb --extract apt/qemu-user_*.deb qemu
}

# Unpacked only: nothing of it has to run to be installed.
make_debian() {
  mmdebstrap --quiet --architectures=arm64 --variant=extract --mode=root \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Check-Date "false"' \
    --include=base-files,python3.11-minimal,libpython3.11-stdlib,libjpeg-dev,libpng-dev \
    --include=libssl-dev,nlohmann-json3-dev,libstdc++6 "$release" debian "$mirror"
}

install_wheels() {
  "$python" -m pip wheel --quiet --no-deps --wheel-dir wheels "$root"
  local platforms=(--platform manylinux2014_aarch64) minor
  for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  "$python" -m pip install --quiet --target site --only-binary=:all: --implementation cp \
    --python-version 3.11 "${platforms[@]}" "$(ls "$work"/wheels/*.whl)[openvino,onnxruntime]"
}

# emulated NAME PROGRAM: a script that runs the program, for what starts programs by their path.
emulated() {
  printf '#!/bin/sh\nexec "%s" -L "%s" "%s" "$@"\n' \
    "$work/qemu/usr/bin/qemu-aarch64" "$work/debian" "$2" > "$1"
  chmod +x "$1"
}

cross_compile() {
  cat > arm64.cmake << END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_SYSROOT $work/debian)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH $work/debian)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
END
  cmake -S "$root/runtime/cpp" -B cpp -DCMAKE_TOOLCHAIN_FILE="$work/arm64.cmake" -DCMT_TESTS=ON \
    -DCMT_OPENVINO=ON "-DOpenVINO_DIR=$work/site/openvino/cmake" > cmake.log
  cmake --build cpp --parallel 2 --target cmt_check decode_images read_manifests > build.log
}

need mmdebstrap mmdebstrap
need cmake cmake
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
rm -rf "$work" && mkdir -p "$work" && cd "$work"
if [ -z "$bundle" ]; then
  bundle="$work/bundle"
  "$python" -m zipfile --extract "$root/tests/reference/bundles/schema_1.zip" "$bundle"
fi
mirror="$(mirror_of_this_machine)"
step "qemu" && fetch_qemu
step "Debian for arm64" && make_debian
step "wheels for aarch64" && install_wheels
emulated python "$work/debian/usr/bin/python3.11"
step "cmt-bench --verify, emulated"
PYTHONPATH="$work/site" ./python -c 'from cmt.commands.main import run; run("cmt-bench")' \
  "$bundle" --verify
step "C++, cross-compiled" && cross_compile
for program in cmt_check tests/decode_images tests/read_manifests; do
  emulated "$(basename "$program")" "$work/cpp/$program"
done
step "cmt_check, emulated" && ./cmt_check "$bundle"
step "images, emulated C++ beside this machine's Python"
"$python" "$root/tests/fuzz/alike.py" "$work/decode_images" --seconds 20
step "manifests, the same"
"$python" "$root/tests/fuzz/manifests_alike.py" "$work/read_manifests" --count 2000
step "done"
