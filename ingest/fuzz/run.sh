#!/bin/sh
# Fuzzes one target: run.sh PROGRAM TARGET SECONDS. What reaches something new is kept in corpus/TARGET, one input in each line, as gzip in
# base64: the fewest that reach everything, the small ones first. An input that finds a fault is named, and the run fails. 0 seconds: inputs of
# earlier runs are kept, nothing is fuzzed.
set -eu
program=$1 name=$2 seconds=$3
kept=$(cd "$(dirname "$0")" && pwd)/corpus/$name
work=${program%/*/*/*}/work/$name
# Bytes of a corpus.
kept_max=130000

export WEIR_FUZZ_TARGET="$name" WEIR_FUZZ_FOLDER="$work"
rm -rf "$work/seeds" "$work/merged"
mkdir -p "$work/found" "$work/merged" "$work/findings" "$work/seeds"
if [ "$seconds" -gt 0 ]; then
	"$program" -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
		-dict="$work/words" -artifact_prefix="$work/findings/" "$work/found" "$work/seeds"
fi
"$program" -set_cover_merge=1 -use_counters=0 -max_len=8192 -artifact_prefix="$work/findings/" "$work/merged" "$work/seeds" "$work/found"
cd "$work/merged"
# Their names are digests.
# shellcheck disable=SC2012
ls -rS | while read -r file; do
	gzip -9n <"$file" | base64 -w 0
	echo
done | awk -v max="$kept_max" '{ bytes += length($0) + 1 } bytes <= max' | LC_ALL=C sort >"$kept"
echo "$name: $(wc -l <"$kept") of $(find . -type f | wc -l) inputs kept"
