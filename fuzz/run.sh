#!/bin/sh
# Coverage-guided fuzzing on the stable toolchain.
#
#   fuzz/run.sh SECONDS [TARGET...]   each target for so many seconds, all targets where none is named
#   fuzz/run.sh minimise              takes what was found new into fuzz/corpus/, and leaves out what adds nothing
#
# What a run finds new lies in target/fuzz/corpus/TARGET and is used by the next one; what breaks a target, in
# target/fuzz/findings/. Instrumented like this without cargo-fuzz, for `-Z sanitizer` wants nightly and the passes do not.
set -eu
cd "$(dirname "$0")/.."

all="client_hello configuration engine requests"
host=$(rustc -vV | sed -n 's/^host: //p')
home=target/fuzz
built=$home/$host/release
corpus=$home/corpus
findings=$home/findings

build() {
    echo "fuzz: building the targets"
    # An explicit --target, or build scripts and macros would be instrumented too.
    RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
        cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target-dir "$home" --target "$host"
}

# The longest input that a target makes anything of.
longest() {
    case $1 in
    client_hello) echo 8192 ;;
    configuration) echo 4096 ;;
    engine) echo 2048 ;;
    requests) echo 4096 ;;
    esac
}

dictionary() {
    [ ! -f "fuzz/dictionaries/$1.dict" ] || echo "-dict=fuzz/dictionaries/$1.dict"
}

fuzz() {
    seconds=$1 target=$2 log=$home/$2.log
    mkdir -p "$corpus/$target" "$findings/$target"
    failed=
    # shellcheck disable=SC2046 # one word or none
    "$built/$target" "$corpus/$target" "fuzz/corpus/$target" -max_total_time="$seconds" -timeout=20 \
        -max_len="$(longest "$target")" -print_final_stats=1 -artifact_prefix="$findings/$target/" \
        $(dictionary "$target") >"$log" 2>&1 || failed=yes
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    entries=$(find "$corpus/$target" "fuzz/corpus/$target" -type f | wc -l)
    echo "fuzz: $target: ${executions:-0} executions in $seconds s, ${edges:-0} edges covered, $entries inputs"
    if [ -n "$failed" ]; then
        grep -v -e '^#' -e '^stat::' "$log" | tail -n 40
        echo "fuzz: $target broke; the input is the newest file in $findings/$target/, and shows it again with"
        echo "    $built/$target FILE"
        return 1
    fi
}

minimise() {
    for target in $all; do
        least=$home/least/$target
        rm -rf "$least"
        mkdir -p "$least" "$corpus/$target"
        "$built/$target" -merge=1 -set_cover_merge=1 -max_len="$(longest "$target")" "$least" \
            "fuzz/corpus/$target" "$corpus/$target" >"$home/$target.log" 2>&1
        rm -f "fuzz/corpus/$target"/*
        cp "$least"/* "fuzz/corpus/$target/"
        echo "fuzz: $target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs"
    done
}

what=${1:?SECONDS, or minimise}
shift
build
if [ "$what" = minimise ]; then
    minimise
    exit
fi
status=0
for target in ${*:-$all}; do
    fuzz "$what" "$target" || status=1
done
exit $status
