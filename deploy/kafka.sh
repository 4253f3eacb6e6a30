#!/bin/sh
# A Kafka broker for tests and trials, on loopback ports, as one process of this user. Not for production.
#
#   deploy/kafka.sh start FOLDER [BROKERS]  starts it, or takes the one that runs there; prints the bootstrap servers
#   deploy/kafka.sh stop FOLDER             ends it; the folder stays
#   deploy/kafka.sh run COMMAND...          a broker in a new folder, its address in WEIR_TEST_KAFKA, ended after the command
#
# BROKERS is 1, or what WEIR_KAFKA_BROKERS says.
# FOLDER holds, for broker N: N.properties, N.pid, N.log, data-N. A broker that was killed is started again by `start`, with its
# ports and its data. The first start fetches the broker's jars (43 MB, Maven Central) into WEIR_KAFKA_LIB, by default a folder
# of the user's cache, and installs Java and Maven from the system's packages where they are missing.
set -eu

version=4.1.1
here=$(cd "$(dirname "$0")" && pwd)
lib=${WEIR_KAFKA_LIB:-${XDG_CACHE_HOME:-$HOME/.cache}/weir/kafka-$version}

fail() {
    echo "$0: $*" >&2
    exit 1
}

# Fetches the jars once; Maven compares them with the checksums of their repository.
fetch() {
    if ! command -v java >/dev/null || { [ ! -d "$lib" ] && ! command -v mvn >/dev/null; }; then
        "$here/install.sh" kafka >&2
    fi
    [ ! -d "$lib" ] || return 0
    echo "fetching Kafka $version, 43 MB, into $lib" >&2
    mkdir -p "$(dirname "$lib")"
    new=$(mktemp -d "$lib.XXXXXX")
    mvn -q -B -C -f "$here/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$new" >&2
    # Another start may have been quicker.
    mv -T "$new" "$lib" 2>/dev/null || rm -rf "$new"
}

is_free() { # port
    ! grep -qi ":$(printf '%04X' "$1") [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

# Says a port that nobody listens on, below those that the system gives to connections.
free_port() {
    while :; do
        port=$((12000 + $(od -An -N2 -tu2 /dev/urandom) % 16000))
        case " $taken " in *" $port "*) continue ;; esac
        ! is_free "$port" || break
    done
    echo "$port"
}

is_running() { # folder, broker
    [ -s "$1/$2.pid" ] && grep -qF "$1/$2.properties" "/proc/$(cat "$1/$2.pid")/cmdline" 2>/dev/null
}

configure() { # folder, brokers
    folder=$1 count=$2 taken='' voters='' brokers=''
    for node in $(seq "$count"); do
        port=$(free_port)
        taken="$taken $port"
        controller=$(free_port)
        taken="$taken $controller"
        brokers="$brokers${brokers:+,}127.0.0.1:$port"
        voters="$voters${voters:+,}$node@127.0.0.1:$controller"
    done
    for node in $(seq "$count"); do
        port=$(echo "$brokers" | cut -d, -f"$node")
        controller=$(echo "$voters" | cut -d, -f"$node")
        cat >"$folder/$node.properties" <<EOF
process.roles=broker,controller
node.id=$node
controller.quorum.voters=$voters
listeners=PLAINTEXT://$port,CONTROLLER://${controller#*@}
advertised.listeners=PLAINTEXT://$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$folder/data-$node
num.partitions=1
default.replication.factor=$count
min.insync.replicas=$((count / 2 + 1))
offsets.topic.replication.factor=$count
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=$count
transaction.state.log.min.isr=$((count / 2 + 1))
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.check.interval.ms=1000
# A broker that was killed is let in again when its former session is over.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
EOF
    done
    # 22 characters of base64 are 16 bytes; the last character must leave its low bits empty.
    id=$(od -An -N15 -tx1 /dev/urandom | tr -d ' \n' | cut -c1-21)A
    for node in $(seq "$count"); do
        java -cp "$lib/*" kafka.tools.StorageTool format -t "$id" -c "$folder/$node.properties" >"$folder/$node.log" 2>&1 ||
            fail "broker $node: its storage cannot be formatted: $(tail -n 3 "$folder/$node.log")"
    done
    echo "$brokers" >"$folder/brokers"
}

start() { # folder, brokers
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    count=${2:-${WEIR_KAFKA_BROKERS:-1}}
    fetch
    # One start at a time; the lock ends with this process.
    exec 9>"$folder/lock"
    flock 9
    [ -s "$folder/brokers" ] || configure "$folder" "$count"
    started=
    for properties in "$folder"/[0-9]*.properties; do
        node=$(basename "$properties" .properties)
        ! is_running "$folder" "$node" || continue
        rm -f "$folder/$node.log" # what an earlier run said must not be taken for this one's
        : >"$folder/$node.log"
        setsid java -Xms256m -Xmx768m -XX:+UseSerialGC -cp "$lib/*" kafka.Kafka "$properties" \
            >>"$folder/$node.log" 2>&1 </dev/null 9>&- &
        echo $! >"$folder/$node.pid"
        started="$started $node"
    done
    for node in $started; do
        tries=0
        until grep -q 'Kafka Server started' "$folder/$node.log"; do
            tries=$((tries + 1))
            is_running "$folder" "$node" || [ "$tries" -lt 10 ] || fail "broker $node ended: $(tail -n 5 "$folder/$node.log")"
            [ "$tries" -lt 600 ] || fail "broker $node has not started within a minute, see $folder/$node.log"
            sleep 0.1
        done
    done
    cat "$folder/brokers"
}

stop() { # folder
    folder=$(cd "$1" && pwd)
    for file in "$folder"/[0-9]*.pid; do
        node=$(basename "$file" .pid)
        is_running "$folder" "$node" || continue
        pid=$(cat "$file")
        kill "$pid"
        tries=0
        while is_running "$folder" "$node"; do
            tries=$((tries + 1))
            [ "$tries" -ne 150 ] || kill -9 "$pid"
            sleep 0.1
        done
        rm -f "$file"
    done
}

run() { # command
    run_folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-kafka.XXXXXX")
    trap 'stop "$run_folder"; rm -rf "$run_folder"' EXIT
    trap 'exit 130' INT TERM HUP
    # In a process of its own, which the lock of the folder ends with.
    WEIR_TEST_KAFKA=$("$0" start "$run_folder")
    export WEIR_TEST_KAFKA
    echo "Kafka: $WEIR_TEST_KAFKA" >&2
    "$@"
}

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

[ $# -ge 2 ] || usage
case $1 in
    start) start "$2" "${3:-}" ;;
    stop) stop "$2" ;;
    run) shift && run "$@" ;;
    *) usage ;;
esac
