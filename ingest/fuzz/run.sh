#!/bin/sh
# Fuzzes one target: run.sh PROGRAM TARGET SECONDS. What reaches something new is kept in corpus/TARGET, one input in each line, as gzip in
# base64: the fewest that reach everything, the small ones first. An input that finds a fault is named, and the run fails. 0 seconds: inputs of
# earlier runs are kept, nothing is fuzzed.
set -eu
program=$1 name=$2 seconds=$3
kept=$(cd "$(dirname "$0")" && pwd)/corpus/$name
folder=${program%/*/*/*}/runs/$name
# Bytes of a corpus.
kept_max=130000

export WEIR_FUZZ_TARGET="$name" WEIR_FUZZ_FOLDER="$folder"
rm -rf "$folder/seeds" "$folder/merged"
mkdir -p "$folder/found" "$folder/merged" "$folder/findings" "$folder/seeds"
if [ "$seconds" -gt 0 ]; then
	"$program" -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
		-dict="$folder/words" -artifact_prefix="$folder/findings/" "$folder/found" "$folder/seeds"
fi
"$program" -set_cover_merge=1 -use_counters=0 -max_len=8192 -artifact_prefix="$folder/findings/" "$folder/merged" "$folder/seeds" "$folder/found"
cd "$folder/merged"
# Their names are digests.
# shellcheck disable=SC2012
ls -rS | while read -r file; do
	gzip -9n <"$file" | base64 -w 0
	echo
done | awk -v max="$kept_max" '{ bytes += length($0) + 1 } bytes <= max' | LC_ALL=C sort >"$kept"
echo "$name: $(wc -l <"$kept") of $(find . -type f | wc -l) inputs kept"
