# Two commands do all the set-up: `make demo` and `make test`.

CARGO_PROFILE = --profile demo

.PHONY: help demo test lint format

help:
	@echo "make demo    build, start everything on this machine, send simulated traffic, show a result"
	@echo "             (DEMO_EXIT=1 ends it after that; USERS=20000 says how many users)"
	@echo "make test    build and run all tests"
	@echo "make lint    check format and lints, as CI does"
	@echo "make format  format the sources"
	@echo "Both commands install what is missing on Debian or Ubuntu, and say beforehand what."

demo:
	deploy/install.sh demo
	cargo build --locked $(CARGO_PROFILE) --package weir
	"$${CARGO_TARGET_DIR:-target}/demo/weir" demo --users $(or $(USERS),20000) $(if $(DEMO_EXIT),--exit)

test:
	deploy/install.sh test
	deploy/kafka.sh run cargo test --locked $(CARGO_PROFILE) --workspace

lint:
	cargo fmt --all --check
	cargo clippy --locked $(CARGO_PROFILE) --workspace --all-targets -- --deny warnings

format:
	cargo fmt --all
