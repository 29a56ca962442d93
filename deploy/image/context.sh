#!/bin/sh
# Makes CONTEXT, the folder from which Containerfile makes the image of a daemon that is built:
#
#   daemon/  the daemon BINARY, its configuration, and an empty /run
#   base/    the libraries that it needs, and the certificates of public authorities
#   socket/  the folder of the Unix socket
#
# Runs on Debian or Ubuntu, because libraries and certificates are those of its packages.
#
#   deploy/image/context.sh BINARY CONTEXT
set -eu

fail() {
    echo "context.sh: $*" >&2
    exit 1
}

[ $# -eq 2 ] || fail "expected BINARY CONTEXT"
binary=$1
context=$2
anchors=/usr/share/ca-certificates/mozilla
[ -x "$binary" ] || fail "$binary: expected the daemon's binary"
[ ! -e "$context" ] || fail "$context: remove it, or name another folder"
[ -d "$anchors" ] || fail "$anchors is missing: install the package ca-certificates of Debian or Ubuntu"
libraries=$(ldd "$binary") || fail "$binary: expected a dynamic binary of this machine"
case $libraries in
*"not found"*) fail "$binary: a library is missing: $libraries" ;;
esac

# The build host must not change the image, so modes are set here, and times below.
put() {
    install -D -m "$1" "$2" "$context$3"
}

put 0755 "$binary" /daemon/usr/local/bin/tls-sessiond
# A Unix socket alone: over TCP every process of the network namespace would be `local`. A socket that is set and cannot be
# made ends the daemon.
printf '%s\n' '# Mount a file or a folder here.' '[listen]' 'api = ["unix:///run/tls-sessiond/api.sock"]' |
    put 0644 /dev/stdin /daemon/etc/tls-sessiond/tls-sessiond.toml
install -d -m 0755 "$context/daemon/run" "$context/socket"
install -d -m 0750 "$context/socket/tls-sessiond"

for library in $(echo "$libraries" | sed -n 's/^\(.*=> \)\{0,1\}[[:space:]]*\(\/[^ ]*\) (0x.*/\2/p'); do
    case $library in
    # The kernel executes the loader.
    */ld-linux*) mode=0755 ;;
    *) mode=0644 ;;
    esac
    put "$mode" "$library" "/base$library"
    # dpkg knows a file by its path before or after the merge of /lib and /usr/lib.
    package=$(dpkg-query --search "$library" "$(readlink -f "$library")" 2>/dev/null | sed -n '1s/:.*//p')
    [ -n "$package" ] || fail "$library: expected a file of a Debian package"
    # Where scanners look for Debian packages, and the licence.
    dpkg-query --status "$package" | put 0644 /dev/stdin "/base/var/lib/dpkg/status.d/$package"
    put 0644 "/usr/share/doc/$package/copyright" "/base/usr/share/doc/$package/copyright"
done
# Scanners read the release of Debian.
put 0644 /etc/os-release /base/etc/os-release
# The authorities of the package, not /etc/ssl/certs: that also has those which were added to the build host.
cat "$anchors"/*.crt | put 0644 /dev/stdin /base/etc/ssl/certs/ca-certificates.crt

find "$context" -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
