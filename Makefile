# What there is to do here. `make test` is the whole gate, and all that CI runs.
.PHONY: run test bench demo fuzz

# The daemon with its built-in defaults: no file needed.
run:
	cargo run --release

# tests/peers.sh installs openssl and its headers, curl, gnutls-cli, sslyze, buf, grpcurl, grpcio, grpc-js, grpc-go, typos and
# cargo-deny where they are missing.
test:
	tests/peers.sh
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --all-features -- -D warnings
	cargo clippy --all-targets -- -D warnings
	cargo clippy --no-default-features --features client -- -D warnings
	cargo clippy --no-default-features --features openssl -- -D warnings
	cargo clippy --no-default-features --features rustls -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --all-features
	.peers/bin/typos
	.peers/bin/cargo-deny --locked --log-level error check licenses bans sources
	.peers/bin/buf lint
	.peers/bin/buf format -d --exit-code
	.peers/bin/buf breaking --against proto/v1.binpb
	cargo test --all-features

# tests/peers.sh installs redis-server and memcached where they are missing: lookups are measured against them.
bench:
	tests/peers.sh bench
	cargo bench --all-features

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
