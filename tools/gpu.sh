#!/usr/bin/env bash
# Everything that needs a GPU, in one call: the GPU tests, then the training benchmark on each shards folder given.
#   tools/gpu.sh OUTPUT_FOLDER shards-photos shards-fashion
# Writes OUTPUT_FOLDER/tests.log and OUTPUT_FOLDER/<shards>.json (with hardware, versions and n).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: tools/gpu.sh OUTPUT_FOLDER SHARDS...}; shift
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python3 -m pytest -m gpu -p no:cacheprovider 2>&1 | tee "$out/tests.log"
status=$?
for shards in "$@"; do
  python3 tools/bench.py train "$shards" --seeds 8 --steps 200 --no-notebook --json "$out/$(basename "$shards").json" || status=1
done
exit $status
