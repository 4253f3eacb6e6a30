#!/bin/sh
# How long a change of one experiment keeps commits of its project waiting: `weir admin experiment stop`, `start` and `weir admin recompute`
# beside MILLIONS million impressions, a tenth of them the experiment's, while a probe takes the locks of a commit again and again, as
# fast as it can. Prints the seconds of each command and the longest time that the probe took, in milliseconds. Wants the installed Postgres server.
#   benches/experiment-change.sh MILLIONS [WEIR]
set -eu
millions=${1:?how many million impressions}
cd "$(dirname "$0")/.."
weir=${2:-target/demo/weir}
. benches/postgres.sh
folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-change.XXXXXX")
chmod 711 "$folder"
finish() {
    end_postgres
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM
start_postgres "$folder" -c jit=off
chmod 711 "$server"
psql="$as psql -X -q -h $server -U weir -v ON_ERROR_STOP=1 postgres"
export WEIR_DATABASE_URL="$DATABASE_URL"
"$weir" migrate 2>/dev/null
"$weir" admin experiment create checkout --variant control:50:control --variant b:50 --start >/dev/null
$psql <<SQL
INSERT INTO logs (log_id, log_partitions) VALUES ('00000000-0000-0000-0000-000000000002', 8);
INSERT INTO checkpoints (log_id, log_partition) SELECT log_id, generate_series(0, 7) FROM logs;
UPDATE experiments SET started_at = '2026-01-01';
CREATE TABLE impressions_year PARTITION OF impressions FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
-- A tenth of the users saw the experiment, each of them ten times.
INSERT INTO impressions (project_id, user_id, claimed_at, id, event_time, received_at, log_offset, log_id, log_partition, untimed,
                         is_bot, experiment_id, variant_id)
SELECT p.id, md5('u' || n / 10)::uuid, t, md5('i' || n)::uuid, t, t, n, '00000000-0000-0000-0000-000000000002', (n / 10 % 8)::int, false,
       false, CASE WHEN n / 10 % 10 = 0 THEN e.id END,
       CASE WHEN n / 10 % 10 = 0 THEN (SELECT v.id FROM variants v WHERE v.name = CASE WHEN n / 100 % 2 = 0 THEN 'control' ELSE 'b' END) END
FROM (SELECT n, '2026-01-02'::timestamptz + n * interval '100 ms' AS t FROM generate_series(1::bigint, $millions * 1000000) n) s,
     projects p, experiments e;
VACUUM ANALYZE impressions;
-- A server that has run for a while uses the files of its own log again. A new file is filled with zeros first, 16 MiB, and whoever commits
-- then waits for the disk, whatever caused it.
CHECKPOINT;
SQL
key=$($psql -At -c "SELECT ('x' || left(replace(id::text, '-', ''), 16))::bit(64)::bigint FROM projects")
cat >"$server/probe.sql" <<SQL
BEGIN;
SELECT 1 FROM checkpoints ORDER BY log_id, log_partition FOR UPDATE;
SELECT pg_advisory_xact_lock_shared($key);
COMMIT;
SQL
chmod 644 "$server/probe.sql"

measure() { # what, then the command
    what=$1
    shift
    (
        cd "$server"
        rm -f probe.log.*
        exec $as "$binaries/pgbench" -n -f probe.sql -c 1 -T 100000 --log --log-prefix=probe.log -h "$server" -U weir postgres
    ) >/dev/null 2>&1 &
    probe=$!
    sleep 1
    begun=$(date +%s.%N)
    "$weir" admin "$@" 2>/dev/null
    ended=$(date +%s.%N)
    sleep 1
    kill "$probe"
    wait "$probe" || true
    awk -v what="$what" -v seconds="$(awk "BEGIN { print $ended - $begun }")" '
        { ms = $3 / 1000; if (ms > longest) longest = ms; n += 1 }
        END { printf "%s: %.1f s; %d probes meanwhile, the longest %.1f ms\n", what, seconds, n, longest }' "$server"/probe.log.*
}
measure "first recomputation" recompute checkout
measure "stop" experiment stop checkout
measure "start" experiment start checkout
measure "recomputation" recompute checkout
