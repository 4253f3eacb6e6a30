#!/bin/sh
# Builds the targets with the coverage that libFuzzer reads, in a folder of their own, and prints the program's path.
set -eu
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-../../target}/fuzz
cp ../../Cargo.lock Cargo.lock
# With a target named, build scripts and macros are built without.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing" \
	cargo build --quiet --release --target "$host" --target-dir "$target"
echo "$(cd "$target" && pwd)/$host/release/ingest-fuzz"
