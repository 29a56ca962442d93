# `make check` while you work. `make test` is the whole gate, and all that CI runs.
.PHONY: run check test bench demo fuzz

# The daemon with its built-in defaults: no file needed.
run:
	cargo run --release

# Format, lints, unit tests and the integration tests that need no other program. Needs a Rust toolchain and a C compiler.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace

# tests/peers.sh installs openssl and its headers, curl, gnutls-cli, sslyze, buf, grpcurl, grpcio, grpc-js, grpc-go, typos and
# cargo-deny where they are missing.
test:
	tests/peers.sh
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --features peers -- -D warnings
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package tls-sessiond-core --all-targets --features shuttle -- -D warnings
	cargo clippy --package tls-sessiond-client -- -D warnings
	cargo clippy --package tls-sessiond-client --features openssl -- -D warnings
	cargo clippy --package tls-sessiond-client --features rustls -- -D warnings
	cargo clippy --package tls-sessiond-proto --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --workspace --features peers
	.peers/bin/typos
	.peers/bin/cargo-deny --locked --log-level error check licenses bans sources
	.peers/bin/buf lint
	.peers/bin/buf format -d --exit-code
	.peers/bin/buf breaking --against proto/v1.binpb
	cargo test --workspace --features peers
	cargo test --package tls-sessiond-core --features shuttle --test shuttle

# tests/peers.sh installs redis-server and memcached where they are missing: lookups are measured against them.
bench:
	tests/peers.sh bench
	cargo bench --package tls-sessiond --features openssl

# Returning clients over three workers, with one shared daemon and with a daemon for each.
demo:
	cargo build --bins --examples
	cargo run --quiet --example demo

# Every fuzz target for so many seconds, an hour in all, on the stable toolchain. Stops by itself, and fails where one broke; `make fuzz
# SECONDS=minimise` takes what was found new into fuzz/corpus. tests/peers.sh installs a C++ compiler where there is none.
SECONDS ?= 510
fuzz:
	tests/peers.sh fuzz
	fuzz/run.sh $(SECONDS)
