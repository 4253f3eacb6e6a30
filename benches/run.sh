#!/bin/sh
# Measures and keeps the pages in benches/runs: `benches/run.sh` all of it, `benches/run.sh door copy` only these; of door, door-kafka, copy,
# copy-kafka, pipeline-20k, pipeline-60k, pipeline-closed, results. Wants a machine with nothing else to do, and about half an hour after the build.
# DATABASE_URL: a server whose user may make databases and run CHECKPOINT. Without it a private one is started from the
# installed binaries, with fsync on, as a server in earnest has it.
# PROFILE: of cargo; release if not given.
set -eu
cd "$(dirname "$0")/.."
. benches/postgres.sh
profile=${PROFILE:-release}
folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-bench.XXXXXX")
chmod 711 "$folder"
finish() {
    end_postgres
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM

[ $# -gt 0 ] || set -- door door-kafka copy copy-kafka pipeline-20k pipeline-60k pipeline-closed results
# Built together, since cargo would build what both rest on twice if each were built alone: with other features.
cargo build --locked --profile "$profile" --package benches --package weir
benches=${CARGO_TARGET_DIR:-target}/$profile/benches

[ -n "${DATABASE_URL:-}" ] || start_postgres "$folder"

mkdir "$folder/files"
for what; do
    case $what in
    door | copy) set -- "$what" ;;
    door-kafka | copy-kafka)
        # shellcheck disable=SC2016 # for the inner shell, which knows the broker
        deploy/kafka.sh run sh -c '"$0" "$1" --kafka "$WEIR_TEST_KAFKA" --folder "$2" --save "$3"' \
            "$benches" "${what%-kafka}" "$folder/files" benches/runs
        continue
        ;;
    pipeline-20k) set -- pipeline --name "$what" --rate 20000 ;;
    pipeline-60k) set -- pipeline --name "$what" --rate 60000 ;;
    pipeline-closed) set -- pipeline --name "$what" --rate 0 --seconds 10 ;;
    results) set -- results --weir "${benches%/benches}/weir" ;;
    *)
        echo "found $what; see the head of this file for what is accepted" >&2
        exit 2
        ;;
    esac
    "$benches" "$@" --folder "$folder/files" --save benches/runs
done
