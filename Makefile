# Two commands do all the set-up: `make demo` and `make test`.

CARGO_PROFILE = --profile demo
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test test-release test-kafka simulation chaos outage abuse soak fuzz fuzz-postgres deny lint format

help:
	@echo "make demo    build, start everything on this machine, send simulated traffic, show a result"
	@echo "             (DEMO_EXIT=1 ends it after that; USERS=20000 says how many users)"
	@echo "make test    build and run all tests"
	@echo "make test-release   the tests of what stores each event once, optimised as it is sold, without debug assertions"
	@echo "make test-kafka   the tests over Kafka once more, with three brokers"
	@echo "make simulation   20,000 simulated worlds, each from a seed of its own (SEEDS=200000 FIRST_SEED=1 says how many and which)"
	@echo "make chaos   each fault with a name, under load, and a judge: kills, power cuts, cut commits, full disks, jumps of the clock"
	@echo "             (SCENARIOS='C1 P2' names some, \`benches chaos --list\` all)"
	@echo "make outage  ten minutes without Kafka at 20,000 events a second, and SIGTERM under load 20 times"
	@echo "make abuse   attacks of ten seconds each, and what a good client beside them notices"
	@echo "make soak    the same for an hour, with kills of Postgres and of the query service, and a look for leaks"
	@echo "make fuzz    the collector under libFuzzer, ten minutes for each target; what is worth keeping goes to ingest/fuzz/corpus"
	@echo "             (FUZZ_SECONDS=60 makes it shorter, FUZZ_TARGETS='native pixel' names targets)"
	@echo "make fuzz-postgres   a million events that survive odd requests, stored for real"
	@echo "make lint    check format and lints, as CI does, also without Kafka and with Kafka over TLS"
	@echo "make deny    licences, sources, duplicates and known faults of what Weir rests on"
	@echo "make format  format the sources"
	@echo "Both commands install what is missing on Debian or Ubuntu, and say beforehand what."

demo:
	deploy/install.sh demo
	@[ -x "$(TARGET)/demo/weir" ] || echo "building Weir and the 400 crates that it rests on: 4 to 8 minutes on two cores, this once;" \
		"then it starts, sends traffic of $(or $(USERS),20000) simulated users, and shows what they did"
	cargo build --locked $(CARGO_PROFILE) --package weir
	"$(TARGET)/demo/weir" demo --users $(or $(USERS),20000) $(if $(DEMO_EXIT),--exit)

test:
	deploy/install.sh test
	deploy/kafka.sh run cargo test --locked $(CARGO_PROFILE) --workspace --no-fail-fast

# RELEASED=.. for some of them.
test-release:
	deploy/install.sh test
	deploy/kafka.sh run cargo test --locked --profile test-release $(foreach name,$(or $(RELEASED),events eventlog ingest aggregator),--package $(name)) --no-fail-fast

test-kafka:
	deploy/install.sh test
	WEIR_KAFKA_BROKERS=3 deploy/kafka.sh run cargo test --locked $(CARGO_PROFILE) --workspace --no-fail-fast -- kafka:: services:: journey::

simulation:
	deploy/install.sh test
	WEIR_SIMULATION_SEEDS=$(or $(SEEDS),20000) WEIR_SIMULATION_FIRST_SEED=$(or $(FIRST_SEED),1) \
		cargo test --locked $(CARGO_PROFILE) --workspace -- --nocapture simulation::whatever_goes_wrong

chaos:
	deploy/install.sh test
	cargo build --locked $(CARGO_PROFILE) --workspace
	"$(TARGET)/demo/benches" chaos $(SCENARIOS)

outage:
	deploy/install.sh test
	WEIR_OUTAGE_SECONDS=600 WEIR_OUTAGE_RATE=20000 WEIR_KILLS=20 deploy/kafka.sh run \
		cargo test --locked $(CARGO_PROFILE) --workspace -- --nocapture --test-threads 1 hardest::hardest_minutes hardest::hardest_07

abuse:
	deploy/install.sh test
	cargo build --locked $(CARGO_PROFILE) --workspace
	"$(TARGET)/demo/benches" abuse --weir "$(TARGET)/demo/weir"

soak:
	deploy/install.sh test
	cargo build --locked $(CARGO_PROFILE) --workspace
	"$(TARGET)/demo/benches" abuse --weir "$(TARGET)/demo/weir" --minutes 60

# Of Rust it needs nothing but the stable release; libFuzzer is built from source with a C++ compiler.
FUZZ_TARGETS = request native segment posthog-v0 posthog-v1 snowplow-get snowplow-tp2 growthbook statsig jitsu pixel

fuzz:
	deploy/install.sh test
	program=$$(CARGO_TARGET_DIR="$(abspath $(TARGET))" ingest/fuzz/build.sh) && for target in $(FUZZ_TARGETS); do \
		ingest/fuzz/run.sh "$$program" $$target $(or $(FUZZ_SECONDS),600) || exit 1; done

fuzz-postgres:
	deploy/install.sh test
	WEIR_FUZZ_EVENTS=1000000 deploy/kafka.sh run cargo test --locked $(CARGO_PROFILE) --workspace -- --nocapture survivors::

# cargo-deny is built once, in a minute or two, where it is missing. The known faults are in a database on GitHub.
deny: export PATH := $(PATH):$(abspath $(TARGET))/tools/bin
deny:
	command -v cargo-deny >/dev/null || cargo install --locked --debug --root "$(TARGET)/tools" cargo-deny@0.20.2
	cargo-deny --locked check licenses bans sources
	if git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then cargo-deny --locked check advisories; \
		else echo "known faults: not checked, their database cannot be reached"; fi

lint:
	cargo fmt --all --check
	shellcheck --external-sources benches/*.sh deploy/*.sh ingest/fuzz/*.sh weir/tests/releases/*.sh .ci/run
	promtool check rules deploy/alerts.yml
	cargo clippy --locked $(CARGO_PROFILE) --workspace --all-targets -- --deny warnings
	cargo clippy --locked $(CARGO_PROFILE) --workspace --all-targets --no-default-features -- --deny warnings
	cargo clippy --locked $(CARGO_PROFILE) --workspace --features weir/kafka-tls -- --deny warnings

format:
	cargo fmt --all
