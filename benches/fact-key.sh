#!/bin/sh
# What the fact tables' key costs and gives: COPY of the same 500,000 conversions, and reading all of 20,000 users, into the schema of a
# former commit and into today's, in turn. Prints seconds. Wants the installed Postgres server, and git's history.
#   benches/fact-key.sh COMMIT
set -eu
before=${1:?the commit that is compared with}
cd "$(dirname "$0")/.."
. benches/postgres.sh
folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-fact-key.XXXXXX")
chmod 711 "$folder"
finish() {
    end_postgres
    rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM
start_postgres "$folder" -c jit=off
psql="$as psql -X -q -h $server -U weir -v ON_ERROR_STOP=1"
columns=project_id,id,user_id,external_id,claimed_at,event_time,received_at,untimed,is_bot,log_id,log_partition,log_offset
columns=$columns,conversion_type,conversion_value,currency,page_url,user_agent,country_code,device_type,metadata

for database in before after; do
    $psql -c "CREATE DATABASE $database" postgres
    for file in migrations/sql/*.sql; do
        if [ $database = before ]; then git show "$before:$file"; else cat "$file"; fi | $psql "$database"
    done
    $psql "$database" <<SQL
CREATE TABLE conversions_month PARTITION OF conversions FOR VALUES FROM ('2026-11-01') TO ('2026-12-01');
CREATE TABLE raw AS
SELECT '00000000-0000-0000-0000-000000000001'::uuid AS project_id, md5('i' || n)::uuid AS id, md5('u' || u)::uuid AS user_id,
       'u' || u AS external_id, t AS claimed_at, t AS event_time, t + interval '1 s' AS received_at, false AS untimed,
       false AS is_bot, '00000000-0000-0000-0000-000000000002'::uuid AS log_id, (n % 8)::int AS log_partition, n AS log_offset,
       'purchase' AS conversion_type, (n % 1000)::numeric(20, 6) AS conversion_value, 'EUR' AS currency,
       'https://shop.example/p/' || n AS page_url, 'Mozilla/5.0 (X11; Linux x86_64)' AS user_agent, 'DE' AS country_code,
       'desktop' AS device_type, '{"sku":"x"}'::jsonb AS metadata
FROM (SELECT n, n * 7919 % 100000 AS u, '2026-11-01'::timestamptz + n * interval '3 s' AS t FROM generate_series(1::bigint, 500000) n) s;
SQL
    # Batches of 20,000, each in the order of the key, as the aggregator copies them.
    key=$($psql -At -c "SELECT string_agg(a.attname, ',' ORDER BY k.n) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (at, n), pg_attribute a
                        WHERE i.indrelid = 'conversions'::regclass AND i.indisprimary AND a.attrelid = i.indrelid AND a.attnum = k.at" $database)
    $psql -c "COPY (SELECT $columns FROM raw ORDER BY log_offset / 20000, $key) TO '$server/$database.bin' (FORMAT BINARY)" $database
done

seconds() { # database, statement
    begun=$(date +%s.%N)
    $psql -c "$2" "$1" >/dev/null
    awk "BEGIN { printf \"%.2f\", $(date +%s.%N) - $begun }"
}
users="SELECT count(*) FROM unnest((SELECT array_agg(user_id) FROM (SELECT DISTINCT user_id FROM raw ORDER BY 1 LIMIT 20000) q)) u (user_id)
       CROSS JOIN LATERAL (SELECT c.event_time, c.id, c.claimed_at, c.conversion_value FROM conversions c
                           WHERE c.project_id = '00000000-0000-0000-0000-000000000001' AND c.user_id = u.user_id OFFSET 0) c"
for round in 1 2 3 4 5; do
    for database in before after; do
        $psql -c "TRUNCATE conversions" -c CHECKPOINT $database
        echo "copy $database $round: $(seconds $database "COPY conversions ($columns) FROM '$server/$database.bin' (FORMAT BINARY)")"
    done
done
for round in 1 2 3 4 5; do
    for database in before after; do echo "users $database $round: $(seconds $database "$users")"; done
done
for database in before after; do
    echo "indexes $database: $($psql -At -c "SELECT pg_size_pretty(pg_indexes_size('conversions_month'))" $database)"
done
