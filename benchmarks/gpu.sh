#!/usr/bin/env bash
# Measures vit_jax on a GPU in short calls; see docs/gpu.md.
#
#   benchmarks/gpu.sh prepare 'VERSIONS' [OPTIONS]   with network: gets packages
#       for these versions of Python, and CIFAR-10 (options of make_npz.py)
#   benchmarks/gpu.sh PART FOLDER [--seed=N]    tests, speed, layers, cifar, mae
#   benchmarks/gpu.sh --rehearse FOLDER [PACKAGES]   all parts, tiny, on a CPU
#
# PYTHON is the Python to use. A call that ends with status 75 is not complete.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
part=${1:?the first argument is prepare, --rehearse or a part}
files=$root/benchmarks/gpu_files

prepare() {
  local versions=$1 platforms=() version
  shift
  for version in 2_17 2_27 2_28; do
    platforms+=(--platform "manylinux_${version}_x86_64")
  done
  for version in $versions; do
    "$python" -m pip download -q --only-binary=:all: --python-version "$version" \
      "${platforms[@]}" --platform manylinux2014_x86_64 -d "$files/wheels" \
      ml_collections pillow pytest
  done
  PYTHONPATH=$root "$python" "$root/scripts/make_npz.py" cifar10 \
    "$files/cifar10.npz" "$@"
  du -h "$files"/*.npz "$files"/wheels/*
}

rehearse() {
  local folder=$1 status
  shift
  [ $# -gt 0 ] || set -- jax flax optax orbax-checkpoint
  "$python" -m venv --clear "$folder/env"
  python=$folder/env/bin/python
  "$python" -m pip install -q "$@"
  if "$python" -c 'import tensorflow' 2>/dev/null; then
    echo 'the rehearsal must run without TensorFlow'
    exit 1
  fi
  for part in tests speed layers cifar mae; do
    status=75
    while [ $status = 75 ]; do
      status=0
      "$python" "$root/benchmarks/gpu.py" $part "$folder" --tiny || status=$?
    done
    [ $status = 0 ] || failed+=" $part"
  done
  [ -z "$failed" ] || { echo "the rehearsal failed:$failed"; exit 1; }
  echo 'the rehearsal is complete. Only tests of the fused kernel did not run.'
}

# Large batches need most of the memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
failed=
shift
case $part in
  prepare) prepare "$@" ;;
  --rehearse) rehearse "$@" ;;
  *) exec "$python" "$root/benchmarks/gpu.py" "$part" "$@" ;;
esac
