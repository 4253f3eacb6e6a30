#!/bin/sh
# Measures a former commit and today's in one run, each in turn: what run.sh measures, before and after.
#   benches/compare.sh COMMIT WHAT..      such as: benches/compare.sh HEAD~20 copy pipeline-closed
# Prints where the pages are. The former commit is built in a folder of its own, which takes as long as a first build; BEFORE_TARGET names
# a target folder to keep for it.
set -eu
commit=${1:?the commit that is compared with}
shift
[ $# -gt 0 ] || { echo "usage: $0 COMMIT copy|pipeline-closed|.." >&2; exit 2; }
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain benches/runs)" ] || { echo "benches/runs has changes; commit them before" >&2; exit 1; }
folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-compare.XXXXXX")
finish() { git worktree remove --force "$folder/before" || true; }
trap finish EXIT
trap 'exit 1' INT TERM
git worktree add --quiet --detach "$folder/before" "$commit"
for round in 1 2; do
    for side in before after; do
        mkdir -p "$folder/$round-$side"
        if [ "$side" = before ]; then
            checkout=$folder/before
            target=${BEFORE_TARGET:-$folder/target}
        else
            checkout=.
            target=${CARGO_TARGET_DIR:-$PWD/target}
        fi
        (
            cd "$checkout"
            CARGO_TARGET_DIR=$target benches/run.sh "$@"
            for page in $(git ls-files --others --modified benches/runs); do mv "$page" "$folder/$round-$side/"; done
            git checkout --quiet -- benches/runs
        )
        echo "$side, round $round: $folder/$round-$side"
    done
done
