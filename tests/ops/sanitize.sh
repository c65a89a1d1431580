#!/bin/sh
# Runs the compiled op's tests under AddressSanitizer and parts of UndefinedBehaviorSanitizer (bounds, overflows).
#
#     tests/ops/sanitize.sh [pytest arguments]
#
# Needs g++ with libasan; PYTHON names the interpreter (default: python). TensorFlow and Python themselves are not
# instrumented, and leaks are not looked for: both would report their own. Exits with an error if there is a finding.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/g++" <<'END'
#!/bin/sh
exec g++ -g -fsanitize=address,bounds,signed-integer-overflow,float-cast-overflow -fno-omit-frame-pointer \
    -DMRCNN_MAX_LANES="$LANES" "$@"
END
chmod +x "$work/g++"

export CXX="$work/g++" TF_CPP_MIN_LOG_LEVEL=2 PYTHONPATH="$root" PYTHONDONTWRITEBYTECODE=1
# What is freed between processes and threads of TensorFlow's allocator stays in quarantine, so that a late use shows.
asan="detect_leaks=0:abort_on_error=0:exitcode=99:log_path=$work/report"
ubsan="print_stacktrace=1:log_path=$work/report"
preload="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so.6)"
cd "$root"
status=0
# The copies of the loops for AVX-512, AVX2 and any processor.
for LANES in 16 8 4; do
    export LANES MRCNN_TF_CACHE="$work/cache$LANES"
    # Not under the sanitizer: the compiler has leaks of its own.
    "${PYTHON:-python}" -m mrcnn_tf.cli build-ops
    LD_PRELOAD="$preload" ASAN_OPTIONS="$asan" UBSAN_OPTIONS="$ubsan" "${PYTHON:-python}" -m pytest \
        -p no:cacheprovider tests/ops/test_roi_align.py tests/ops/test_shape_aware.py \
        -k "not sparse and not crop and not gather" "$@" || status=$?
done
found=$(find "$work" -name 'report*' | wc -l)
find "$work" -name 'report*' -exec cat {} +
echo "pytest's exit status: $status; reports of the sanitizers: $found"
[ "$status" -eq 0 ] && [ "$found" -eq 0 ]
