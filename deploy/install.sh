#!/bin/sh
# Installs from Debian's or Ubuntu's packages what building and testing need and this machine lacks. Starts no service.
# Usage: deploy/install.sh demo|test|kafka; kafka: only what a broker for tests and trials needs
set -eu

purpose=${1:-}
case $purpose in
    demo | test | kafka) ;;
    *) echo "usage: $0 demo|test|kafka" >&2; exit 2 ;;
esac

[ "$purpose" = kafka ] || command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later, see https://rustup.rs" >&2; exit 1; }

missing=
need() { # package, what for
    missing="$missing $1"
    echo "missing: $1, for $2"
}

has_postgres() {
    for server in /usr/lib/postgresql/*/bin/postgres; do
        version=${server#/usr/lib/postgresql/}
        [ -x "$server" ] && [ "${version%%/*}" -ge 15 ] && return 0
    done
    command -v initdb >/dev/null && command -v postgres >/dev/null
}

has_java() {
    release=$(java -version 2>&1 | sed -n '1s/[^"]*"\([0-9]*\).*/\1/p')
    [ "${release:-0}" -ge 17 ]
}

if [ "$purpose" != kafka ]; then
    { command -v cc && command -v make; } >/dev/null || need build-essential "linking, and Kafka's client, a C library"
    has_postgres || need postgresql "the private database; no cluster of its own is made"
fi
if [ "$purpose" != demo ]; then
    has_java || need default-jre-headless "a Kafka broker, a process of the tests; not started as a service"
    command -v mvn >/dev/null || need maven "fetching that broker's jars, 43 MB"
fi
if [ "$purpose" = test ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv "the SDKs for Python, in an environment of their own"
    python3 -c 'import yaml' 2>/dev/null || need python3-yaml "reading docker-compose.yml"
    { command -v node && command -v npm; } >/dev/null || { need nodejs "the SDKs for Node and for pages"; need npm "the same"; }
    perl -MFindBin -MIPC::Cmd -e 1 2>/dev/null || need perl "building OpenSSL, for \`make lint\` of Kafka over TLS"
    command -v openssl >/dev/null || need openssl "a proxy with TLS before a service"
    command -v shellcheck >/dev/null || need shellcheck "\`make lint\`"
    command -v strace >/dev/null || need strace "system calls that fail, and deaths inside of them"
    command -v chromium >/dev/null || need chromium "pages with the pixel and with SDKs, in a real browser"
    { command -v promtool && command -v prometheus; } >/dev/null || need prometheus "scraping the services' pages; not started as a service"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "this machine has no apt-get: install the above by its own means, Postgres 15 or later" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "installing needs root, and there is no sudo: let root run $0 $purpose once" >&2; exit 1; }
    as_root=sudo
fi
echo "installing:$missing"

# Packages must start nothing while this runs, and the Postgres packages must make no cluster.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
    made_policy=1
fi
finish() { [ -z "$made_policy" ] || $as_root rm -f $policy; }
trap finish EXIT
trap 'exit 130' INT TERM HUP
cluster=/etc/postgresql-common/createcluster.conf
if [ ! -e $cluster ]; then
    $as_root mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | $as_root tee $cluster >/dev/null
fi
$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of packages
$as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -q -y --no-install-recommends $missing
[ "$purpose" = demo ] || has_java || { echo "this system's Java is older than 17: install openjdk-17-jre-headless or later" >&2; exit 1; }
[ "$purpose" = kafka ] || has_postgres || { echo "this system's Postgres is older than 15: take it from https://apt.postgresql.org" >&2; exit 1; }
# Its package would start it with the machine; tests start their own.
case $missing in
    *prometheus*) ! command -v systemctl >/dev/null || $as_root systemctl disable -q prometheus 2>/dev/null || true ;;
esac
