#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one, torch, and nothing else of what the package depends on.
#   tools/gpu.sh prepare            where packages can be had: wheels (4 MB) and the prediction, into .gpu/ (not in git)
#   tools/gpu.sh OUTPUT_FOLDER      on the GPU machine, with .gpu/ carried along: the tests first, then whole epochs
# Writes OUTPUT_FOLDER/tests.log and OUTPUT_FOLDER/{photos,fashion}.json, with hardware, versions, n and the prediction
# beside each bank: what goes into tools/figures.json. PYTHON_VERSION is the GPU machine's (default 3.12).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: tools/gpu.sh prepare | OUTPUT_FOLDER}

if [ "$out" = prepare ]; then
  rm -rf .gpu && mkdir -p .gpu/wheels
  python3 -m pip download --quiet --dest .gpu/wheels --no-deps --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 pydantic annotated-types typing-inspection submitit cloudpickle webdataset \
    braceexpand simplejpeg || exit 1
  # The core has to be the one that this pydantic names.
  core=$(python3 - <<'EOF'
import pathlib, re, zipfile
(wheel,) = pathlib.Path(".gpu/wheels").glob("pydantic-*.whl")
with zipfile.ZipFile(wheel) as file:
    (name,) = [name for name in file.namelist() if name.endswith("/METADATA")]
    print(re.search(r"Requires-Dist: (pydantic-core==\S+)", file.read(name).decode())[1])
EOF
  )
  python3 -m pip download --quiet --dest .gpu/wheels --no-deps --only-binary=:all: \
    --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 "$core" || exit 1
  python3 tests/rehearsal/device.py tools/bench_predict.py --json .gpu/prediction.json
  exit
fi

mkdir -p "$out"
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
if [ -d .gpu/wheels ]; then
  python3 -m pip install --quiet --no-index --no-deps --target "$packages/lib" .gpu/wheels/*.whl || exit 1
fi
# What the machine has comes first but for these few, and the package itself stands here.
export PYTHONPATH=$PWD:$packages/lib${PYTHONPATH:+:$PYTHONPATH}
python3 -m pytest -m gpu -p no:cacheprovider tests/training/test_gpu.py 2>&1 | tee "$out/tests.log"
status=$?
python3 tools/synthetic.py "$packages/shards" || exit 1
prediction=()
[ -f .gpu/prediction.json ] && prediction=(--prediction .gpu/prediction.json)
for shards in photos fashion; do
  python3 tools/bench.py train "$packages/shards/$shards" --seeds 8 --steps 1000000 --no-notebook "${prediction[@]}" \
    --json "$out/$shards.json" || status=1
done
exit $status
