# shellcheck shell=sh
# Sourced by the scripts beside it: a Postgres of their own, of the newest installed server, with fsync on, as a server in earnest has it.
# start_postgres sets $server, its folder and socket; $as, what commands begin with that run as its user; $binaries; and DATABASE_URL.

start_postgres() { # a folder, then further options of the server
    server=$1/server
    shift
    # shellcheck disable=SC2012 # the folders are Debian's, their names are numbers
    binaries=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5 -n | tail -n 1)
    [ -n "$binaries" ] || binaries=$(dirname "$(command -v postgres)")
    mkdir -m 700 "$server"
    as=
    if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
        chown postgres: "$server"
        as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    fi
    (
        cd "$server" || exit
        $as "$binaries/initdb" -D data -U weir -A trust -E UTF8 --locale=C.UTF-8 >/dev/null
        $as "$binaries/pg_ctl" -D data -l log -w start -o \
            "-k $server -c listen_addresses= -c shared_buffers=512MB -c max_wal_size=8GB $*" >/dev/null
    )
    DATABASE_URL="postgresql://weir@$(printf %s "$server" | sed 's,/,%2F,g')/postgres"
    export DATABASE_URL
}

end_postgres() { # nothing if it was never started
    [ -z "${server:-}" ] || (cd "$server" && $as "$binaries/pg_ctl" -D data -m immediate stop >/dev/null) || true
}
