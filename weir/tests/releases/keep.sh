#!/bin/sh
# Keeps what a build writes, so that `it/upgrade.rs` can show that later builds read it on: the database as SQL, the data folder
# without it, with records in the log that are not stored yet. Run once for each release that changes the schema or a format on disk.
#   weir/tests/releases/keep.sh PROGRAM VERSION      such as: target/demo/weir 0.1.0
set -eu
weir=$1
kept=$(cd "$(dirname "$0")" && pwd)/$2
stored=/tmp/weir-keep.$$
trap 'rm -rf "$stored"' EXIT
# shellcheck disable=SC2012 # the folders are Debian's, their names are numbers
binaries=$(ls -d /usr/lib/postgresql/*/bin | sort -t/ -k5 -n | tail -n 1)

"$weir" demo --users 200 --exit --data "$stored" >/dev/null 2>&1
"$weir" up --data "$stored" --collector 127.0.0.1:0 --query 127.0.0.1:0 --aggregator 127.0.0.1:0 >"$stored/lines" 2>/dev/null &
process=$!
until grep -qs '^ready' "$stored/lines"; do sleep 0.1; done
value() { sed -n "s/^$1 //p" "$stored/lines"; }

# While somebody else holds the checkpoints, events are taken and not stored.
"$binaries/psql" -q "$(value postgres)" -c 'BEGIN; LOCK TABLE checkpoints; SELECT pg_sleep(20)' >/dev/null 2>&1 &
sleep 1
for number in $(seq 100); do
    printf '{"type":"conversion","event_id":"00000000-0000-4000-8000-%012d","user_id":"kept-%d","name":"kept","value":"%d","currency":"EUR"}\n' \
        "$number" "$number" "$number"
done | curl -sf -H "Authorization: Bearer $(value write_key)" -H 'Content-Type: application/x-ndjson' --data-binary @- "$(value collector)/v1/events"
echo
postgres=$(head -n 1 "$stored/postgres/postmaster.pid")
url=$(value postgres)
kill -KILL "$process"
until [ "$("$binaries/psql" -Atc "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'weir%'" "$url")" = 0 ]; do sleep 0.2; done
sleep 20

rm -rf "$kept"
mkdir -p "$kept"
"$binaries/pg_dump" --no-owner --no-privileges --format=custom --compress=9 --file="$kept/database" "$url"
"$binaries/psql" -Atc "SELECT 'events ' || 100 + (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions)
                                             + (SELECT count(*) FROM campaign_events) + (SELECT count(*) FROM engagement_events)
                                             + (SELECT count(*) FROM identity_events)" "$url" >"$kept/expected"
"$binaries/psql" -Atc "SELECT 'kept ' || count(*) FROM conversions WHERE conversion_type = 'kept'" "$url"
kill -INT "$postgres"
tar -czf "$kept/data.tar.gz" -C "$stored" --exclude=./postgres --exclude='./postgres.*' --exclude=./lines --exclude=./weir.json .
ls -l "$kept"
cat "$kept/expected"
