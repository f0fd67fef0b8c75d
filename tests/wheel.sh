#!/usr/bin/env bash
# What users install: builds the wheel, installs it with its declared dependencies in a clean environment outside the
# checkout, and runs it there. PYTHON chooses the interpreter. `make test-wheel` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
torch=$(grep '^torch==' requirements.lock)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf build # setuptools would pack what an older build left there
"${PYTHON:-python3}" -m venv "$work/venv"
# Without byte code: compiling all of it takes longer than what is imported here.
pip() { "$work/venv/bin/pip" --disable-pip-version-check --quiet "$@"; }
phase() { echo "== $1 (after $SECONDS s)"; }
phase "wheel"
pip wheel --no-deps --wheel-dir "$work" .
rm -rf build
wheel=$(echo "$work"/bandpo-*.whl)
cd "$work"
export PATH="$work/venv/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

phase "PyTorch alone"
pip install --no-compile "$torch"
pip install --no-compile "$wheel"
python - <<'END'
import bandpo, torch
assert bandpo.__file__.startswith(__import__("sys").prefix), bandpo.__file__
upper = bandpo.band(torch.tensor([0.5], dtype=torch.float64).log(), radius=0.05).upper.item()
assert abs(upper - (1 + (1 - 2.718281828459045**-0.1) ** 0.5)) < 1e-9, upper
END
if message=$(bandpo --help 2>&1); then
  echo "bandpo runs without its extra" >&2
  exit 1
fi
grep -q "pip install 'bandpo\[train\]'" <<<"$message"

phase "the train extra"
pip install --no-compile "$wheel[train]"
pip check
phase "commands"
bandpo --version
bandpo bounds | grep -q "p x upper"
bandpo recipes | grep -q "^ *quickstart"
bandpo doctor
bandpo explore --export page.html
grep -q "function bandBounds" page.html
if message=$(bandpo explore 2>&1); then
  echo "bandpo explore serves without its extra" >&2
  exit 1
fi
grep -q "pip install 'bandpo\[explore\]'" <<<"$message"
phase "training"
bandpo train scratch train.max_steps=2 --output run
for file in summary.json report.html model/model.safetensors; do
  test -s "run/$file" || { echo "run/$file is missing" >&2; exit 1; }
done
bandpo samples run/eval/after --limit 1
bandpo explore run --export run.html
grep -q '"kind": "run"' run.html
phase "done"
