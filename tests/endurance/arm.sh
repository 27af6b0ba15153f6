#!/usr/bin/env bash
# The bundle of another machine on aarch64, emulated: arm.sh [BUNDLE] (root, Debian 12, its network).
#
# Verifies a bundle that was made on x86 with cmt-bench and with a cross-compiled cmt_check, runs the
# C++ tests, and holds the answers of C++ to images and manifests against Python's. A root of Debian's
# arm64 packages and wheels is made once, in build/arm, and kept until what it depends on changes;
# Debian's packages come from where this machine takes its own. PYTHON has this checkout installed,
# and pip.
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

# Of later releases: ONNX Runtime crashes in bookworm's own qemu 7.2, and its headers came after that.
fetch_later() {
  mkdir -p apt/lists/partial apt/cache/archives/partial
  local suite
  for suite in "$release-backports" trixie; do
    echo "deb [signed-by=$keyring] $mirror $suite main"
  done > apt/sources.list
  local options=(-qq -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd apt && apt-get "${options[@]}" download "qemu-user/$release-backports" libonnxruntime-dev/trixie)
  dpkg-deb --extract apt/qemu-user_*.deb qemu
  dpkg-deb --extract apt/libonnxruntime-dev_*.deb onnxruntime
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
  "$python" -m pip wheel -qq --no-deps --wheel-dir wheels "$root"
  local platforms=(--platform manylinux2014_aarch64) minor
  for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  "$python" -m pip install -qq --target site --only-binary=:all: --implementation cp \
    --python-version 3.11 "${platforms[@]}" "$(ls "$work"/wheels/*.whl)[openvino,onnxruntime]"
  local library
  library="$(ls "$work"/site/onnxruntime/capi/libonnxruntime.so.*)"
  mkdir -p onnxruntime/lib
  ln -s "$library" onnxruntime/lib/libonnxruntime.so
  ln -s "$library" onnxruntime/lib/libonnxruntime.so.1 # as programs name it that are linked to it
}

# The project's own packages are taken from the checkout, so what is kept is of others alone.
make_root() {
  rm -rf "$work" && mkdir -p "$work" && cd "$work"
  mirror="$(mirror_of_this_machine)"
  step "qemu, headers" && fetch_later
  step "Debian for arm64" && make_debian
  step "wheels for aarch64" && install_wheels
  rm -rf site/cmt
  emulated python "$work/debian/usr/bin/python3.11"
  recipe > recipe
}

# What the root depends on.
recipe() {
  declare -f make_root fetch_later make_debian install_wheels emulated
  cat "$root/pyproject.toml"
}

# emulated NAME PROGRAM: a script that runs the program, for what starts programs by their path.
emulated() {
  printf '#!/bin/sh\nexec "%s" -L "%s" "%s" "$@"\n' \
    "$work/qemu/usr/bin/qemu-aarch64" "$work/debian" "$2" > "$1"
  chmod +x "$1"
}

in_python() { PYTHONPATH="$root/build/typed:$work/site" ./python "$@"; }

cross_compile() {
  cat > arm64.cmake << END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_SYSROOT $work/debian)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH $work/debian)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
END
  cmake -S "$root/runtime/cpp" -B cpp -DCMAKE_TOOLCHAIN_FILE="$work/arm64.cmake" -DCMT_TESTS=ON \
    -DCMT_OPENVINO=ON "-DOpenVINO_DIR=$work/site/openvino/cmake" -DCMT_ONNXRUNTIME=ON \
    "-DCMT_ONNXRUNTIME_INCLUDE=$work/onnxruntime/usr/include/onnxruntime" \
    "-DCMT_ONNXRUNTIME_LIBRARY=$work/onnxruntime/lib/libonnxruntime.so" > cmake.log
  local programs=(cmt_check tests/{decode_images,prepare_images,read_manifests,read_arrays}) program
  cmake --build cpp --parallel 2 --target "${programs[@]##*/}" > build.log
  mkdir -p emulated/tests
  for program in "${programs[@]}"; do emulated "emulated/$program" "$work/cpp/$program"; done
}

# Those of images but for memory limits, which would be qemu's, and of answers the quickest.
cpp_tests() {
  local golden=tests/runtime/test_golden.py
  cd "$root"
  RUNTIMES=emulated "$python" -m pytest -k "not memory_that_does_not_suffice" \
    tests/runtime/test_images.py "$golden::test_arrays_are_taken_as_numpy_writes_them_alone" \
    "$golden::test_golden_answers_that_nothing_computes_fail[emulated-0]"
}

# With what an exporter adds to it today: answers in float32, made here.
stored_bundle() {
  rm -rf bundle
  "$python" -m zipfile --extract "$root/tests/reference/bundles/schema_1.zip" bundle
  PYTHONPATH="$root/tests/support" "$python" -m float32_answers bundle
}

need mmdebstrap mmdebstrap
need cmake cmake
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
[ "$(cat "$work/recipe" 2> /dev/null)" = "$(recipe)" ] || make_root
cd "$work"
SECONDS=0
if [ -z "$bundle" ]; then
  step "a bundle that was made on x86" && stored_bundle
  bundle="$work/bundle"
fi
step "cmt-bench --verify, emulated"
in_python -c 'from cmt.commands.main import run; run("cmt-bench")' "$bundle" --verify
step "C++, cross-compiled" && cross_compile
step "cmt_check, emulated" && emulated/cmt_check "$bundle"
step "C++ tests, emulated" && (cpp_tests)
# Damaged JPEGs have pixels of each processor's own, so Python decodes them as emulated as C++ does.
step "images, C++ beside Python, both emulated"
in_python "$root/tests/fuzz/alike.py" emulated/tests/decode_images --seconds 10
step "manifests, emulated C++ beside this machine's Python"
"$python" "$root/tests/fuzz/manifests_alike.py" emulated/tests/read_manifests --count 1000
step "done"
