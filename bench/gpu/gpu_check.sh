#!/usr/bin/env bash
# Everything that needs a GPU: bench/gpu/gpu_check.sh OUTDIR [correctness|benchmarks|all]
#
# Needs python3 with PyTorch and Triton, and no network. Installs wheels in build/wheels into build/gpu, then the sources with
# the CUDA kernels for this GPU, for which nvcc is needed; else without them, or links to the sources where the tools of
# the build are missing. A wheel of lwrn_fast takes their place. Every step has a time limit, and none stops the next.
# OUTDIR gets log.txt, summary.json, machine.json and benchmarks.json; the exit status is 1 where a check failed.
#
# PYTHON=python3       BUDGET=seconds for everything     COMMIT=what is measured, for a tree without .git
# CASES=target|levels  what is measured (target)         LWRN_FAST_CUDA=0  do without the CUDA kernels
set -u
[[ $# -ge 1 && ${2:-all} =~ ^(correctness|benchmarks|all)$ ]] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
if ! "${PYTHON:-python3}" -c "import torch, triton; raise SystemExit(not torch.cuda.is_available())" 2>/dev/null; then
  echo "gpu_check.sh: needs a GPU, and a ${PYTHON:-python3} whose PyTorch and Triton see it" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd) part=${2:-all}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3} commit=${COMMIT:-$(git -C "$root" rev-parse HEAD 2>/dev/null)}
log=$out/log.txt site=$root/build/gpu/site
: >"$log"
mkdir -p "$root/build/gpu"

export PYTHONPATH=$site PATH=$site/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TRITON_CACHE_DIR=$root/build/gpu/triton TORCHINDUCTOR_CACHE_DIR=$root/build/gpu/inductor
unset TRITON_INTERPRET

say() { echo "$*" | tee -a "$log"; }

names=() statuses=() times=() wrong=0

# done_with NAME STATUS SECONDS: notes it, and writes the summary anew, since the whole may be stopped at any moment
done_with() {
  names+=("$1") statuses+=("$2") times+=("$3")
  say "== $1: $2, $3 s"
  local i comma=
  {
    printf '{"commit": "%s", "part": "%s", "installed": "%s", "steps": [' "$commit" "$part" "${how:-}"
    for i in "${!names[@]}"; do
      printf '%s\n {"step": "%s", "status": "%s", "seconds": %s}' "$comma" "${names[i]}" "${statuses[i]}" "${times[i]}"
      comma=,
    done
    printf '\n]}\n'
  } >"$out/summary.json"
}

# step NAME SECONDS COMMAND...: in the log; whether it passed is its status
step() {
  local name=$1 limit=$2 start=$SECONDS code status before
  shift 2
  if [[ -n ${BUDGET:-} ]] && ((BUDGET - SECONDS < limit)); then limit=$((BUDGET - SECONDS)); fi
  say "== $name, at most $limit s: $*"
  if ((limit < 5)); then
    done_with "$name" "no time left" 0
    return 1
  fi
  before=$(wc -l <"$log")
  timeout -k 10 "$limit" "$@" >>"$log" 2>&1
  code=$?
  case $code in
    0) status=passed ;;
    124 | 137) status="out of time" ;;
    *) status="failed with $code" ;;
  esac
  tail -n "+$((before + 1))" "$log" | tail -n 25
  if ((code)) && tail -n "+$((before + 1))" "$log" | grep -q "Device not supported"; then
    status="not possible here"
    code=0
  fi
  done_with "$name" "$status" $((SECONDS - start))
  return $((code != 0))
}

# check ...: a step whose failure is the script's
check() { step "$@" || { wrong=1 && return 1; }; }

# into_site ARGUMENTS...: pip's
into_site() {
  timeout 420 "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$site" "$@" >>"$log" 2>&1
}

# the compute capability of this GPU, as LWRN_FAST_CUDA_ARCHS has it
architecture() {
  "$python" -c "import torch; c = torch.cuda.get_device_capability(); print('%d.%d' % c + 'a' * (c == (9, 0)))"
}

install() {
  rm -rf "$site"
  mkdir -p "$site"
  if compgen -G "$root/build/wheels/*.whl" >/dev/null; then into_site "$root"/build/wheels/*.whl; fi
  how="a wheel"
  [[ -e $site/lwrn_fast ]] && usable && return
  how="with the C++ part"
  export LWRN_FAST_CUDA=${LWRN_FAST_CUDA:-1} LWRN_FAST_CUDA_ARCHS=${LWRN_FAST_CUDA_ARCHS:-$(architecture)}
  LWRN_FAST_NATIVE=1 into_site --upgrade "$root" && usable && return
  how="without the C++ part"
  say "the C++ part cannot be built here, or does not run: installing without it"
  LWRN_FAST_NATIVE=0 into_site --upgrade "$root" && usable && return
  how="linked"
  say "pip cannot install the sources here: linking them"
  rm -rf "$site/lwrn_fast"
  mkdir -p "$site/lwrn_fast"
  ln -s "$root"/lwrn_fast/* "$site/lwrn_fast/"
  ln -sfn "$root/kernels" "$site/lwrn_fast/kernels"
  usable
}

usable() {
  (cd "$site" && "$python" -c "import lwrn_fast; from lwrn_fast.kernels import configs; configs.table()") >>"$log" 2>&1
}

has() { "$python" -c "import importlib.util as u; raise SystemExit(u.find_spec('$1') is None)"; }

correctness() {
  local backend backends=(triton)
  ((with_cuda)) && backends=(cuda triton)
  check "compile small" 240 "$python" bench/gpu/gpu_small.py --compile
  for backend in "${backends[@]}"; do
    check "small, $backend" 120 "$python" bench/gpu/gpu_small.py --backend "$backend"
  done

  local options=(-q -p no:cacheprovider) workers
  workers=$(nproc)
  has xdist && options+=(-n "$((workers < 12 ? workers : 12))")
  has pytest_timeout && options+=(--timeout 240 --timeout-method thread)
  if has pytest && has hypothesis; then
    cd "$root/tests" || exit 2
    for backend in "${backends[@]}"; do
      check "gpu tests, $backend" 300 "$python" -m pytest "${options[@]}" -k "$backend" gpu/test_gpu.py
      check "op tests, $backend" 420 "$python" -m pytest "${options[@]}" -k "$backend" \
        ops/test_crp.py ops/test_fusion.py ops/test_upsample_argmax.py ops/test_ops.py ops/test_gradients.py \
        backends/test_triton.py
    done
    cd "$root" || exit 2
  else
    done_with "gpu tests" "pytest or hypothesis is missing: put their wheels into build/wheels" 0
    wrong=1
  fi

  local sanitizer tool
  sanitizer=$(command -v compute-sanitizer || compgen -G "/usr/local/cuda*/bin/compute-sanitizer" | head -n 1)
  [[ -z $sanitizer ]] && done_with "sanitizers" "compute-sanitizer is missing" 0 && return
  for backend in "${backends[@]}"; do
    for tool in memcheck racecheck synccheck; do
      # without PyTorch's own pool of memory, in which everything is within bounds
      check "$tool, $backend" 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
        --launch-timeout 120 "$python" bench/gpu/gpu_small.py --backend "$backend"
    done
  done
}

benchmarks() {
  local left=500 options=()
  [[ ${CASES:-target} = target && $with_cuda = 1 ]] && options=(--kernels)
  [[ -n ${BUDGET:-} ]] && left=$((BUDGET - SECONDS - 60))
  check "benchmarks" 1200 "$python" bench/gpu/gpu_bench.py --json "$out/benchmarks.json" --cases "${CASES:-target}" \
    --commit "$commit" --budget "$((left > 0 ? left : 0))" "${options[@]}"
}

cd "$root" || exit 2
how=not
started=$SECONDS
if install; then
  done_with install "$how" $((SECONDS - started))
  # not from here, where the sources are in sight
  loaded=(env -C "$site" "$python" -c "from lwrn_fast.backends import cuda; raise SystemExit(cuda.missing())")
  with_cuda=0
  if [[ ${LWRN_FAST_CUDA:-1} != 0 ]]; then check "cuda kernels" 60 "${loaded[@]}" && with_cuda=1; fi
  check "machine" 60 bash -c "'$python' bench/gpu/gpu_bench.py --machine --commit '$commit' | tee '$out/machine.json'; exit \${PIPESTATUS[0]}"
  [[ $part != benchmarks ]] && correctness
  [[ $part != correctness ]] && benchmarks
else
  done_with install "failed" $((SECONDS - started))
  wrong=1
fi

say
for i in "${!names[@]}"; do
  say "$(printf '%-20s %6s s  %s' "${names[i]}" "${times[i]}" "${statuses[i]}")"
done
exit "$wrong"
