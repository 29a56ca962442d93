#!/bin/sh
# Coverage-guided fuzzing on the stable toolchain.
#
#   fuzz/run.sh SECONDS [TARGET...]   fuzzes each target for SECONDS; without TARGET, all targets
#   fuzz/run.sh minimise              copies new inputs into fuzz/corpus/, except those that add no coverage
#
# New inputs are kept in target/fuzz/corpus/TARGET, and later runs use them. Inputs that break a
# target are kept in target/fuzz/findings/. The targets are instrumented here without cargo-fuzz:
# its `-Z sanitizer` needs a nightly toolchain, and the compiler passes do not.
set -eu
cd "$(dirname "$0")/.."

all="access client_hello configuration engine http2 reload requests"
host=$(rustc -vV | sed -n 's/^host: //p')
home=target/fuzz
built=$home/$host/release
corpus=$home/corpus
findings=$home/findings
# Maximum number of inputs of a target in fuzz/corpus, and the pattern of the names that libFuzzer
# gives.
kept=80
hashed=$(printf '[0-9a-f]%.0s' $(seq 40))

build() {
    echo "fuzz: building the targets"
    # With an explicit --target, build scripts and macros are not instrumented.
    RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
        cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target-dir "$home" --target "$host"
}

# Returns the maximum useful length of a target's input.
longest() {
    case $1 in
    access) echo 1024 ;;
    client_hello) echo 8192 ;;
    configuration) echo 4096 ;;
    engine) echo 2048 ;;
    http2) echo 4096 ;;
    reload) echo 4096 ;;
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

# Keeps inputs with names of their own. Of the others, keeps those that add the most coverage,
# because the tests play each of them at every run.
minimise() {
    for target in $all; do
        least=$home/least control=$home/least/control
        rm -rf "$least"
        mkdir -p "$least/all" "$least/best" "$corpus/$target"
        "$built/$target" -merge=1 -use_counters=0 -max_len=1024 -merge_control_file="$control" "$least/all" \
            "fuzz/corpus/$target" "$corpus/$target" >"$home/$target.log" 2>&1
        # The control file has the number of inputs, their names, and the features that each adds to
        # those before it.
        awk 'NR == 1 { count = $1 } NR > 2 && NR <= count + 2 { name[NR - 3] = $1 }
            $1 == "FT" { print NF - 2, name[$2] }' "$control" | sort -rn | head -n "$kept" |
            while read -r _ input; do cp "$input" "$least/best/"; done
        find "fuzz/corpus/$target" -type f -name "$hashed" -delete
        find "$least/best" -type f -name "$hashed" -exec cp {} "fuzz/corpus/$target/" \;
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
