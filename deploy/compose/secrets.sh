#!/bin/sh
# Makes secrets/: keys, certificates and passwords for compose.yaml. `secrets.sh renew` replaces the three certificates that
# expire after 365 days, with the same authority. Needs OpenSSL 3.
#
# The containers read the files as users of their own, so every user may read a file. Only the owner of the folder can enter
# it on the host.
set -eu
cd "$(dirname "$0")"
umask 077
case "$*" in
"") mkdir secrets ;;
renew)
    [ -f secrets/ca.key ] || {
        echo "secrets/ca.key is missing: remove secrets/, and run ./secrets.sh" >&2
        exit 1
    }
    ;;
*)
    echo "usage: secrets.sh [renew]" >&2
    exit 2
    ;;
esac
cd secrets

new="openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
leaf="-days 365 -CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE"
{
    # No container gets the key of the authority.
    [ $# -eq 1 ] || $new -days 3650 -subj /CN=tls-sessiond-compose -keyout ca.key -out ca.crt
    # OpenSSL writes into a file that is there, and does not replace it: containers have mounted the file itself.
    # The certificate that clients of the workers see.
    $new $leaf -subj /CN=localhost -keyout web.key -out web.crt \
        -addext extendedKeyUsage=serverAuth -addext subjectAltName=DNS:localhost,IP:127.0.0.1
    # Mutual TLS between the daemon and Prometheus.
    $new $leaf -subj /CN=daemon -keyout daemon.key -out daemon.crt \
        -addext extendedKeyUsage=serverAuth -addext subjectAltName=DNS:daemon
    $new $leaf -subj /CN=prometheus -keyout prometheus.key -out prometheus.crt \
        -addext extendedKeyUsage=clientAuth -addext subjectAltName=DNS:prometheus
} 2>openssl.log || {
    cat openssl.log >&2
    exit 1
}
rm openssl.log
[ $# -eq 0 ] || exit 0

openssl rand -hex 32 >sealing-keys
openssl rand -hex 24 >store-password
openssl rand -hex 12 >grafana-password
# The commands that the daemon uses (docs/shared-store.md). Every other user can only ask whether the store lives.
cat >store.acl <<EOF
user default on nopass -@all +ping
user sessiond on >$(cat store-password) resetkeys ~tsd1:* resetchannels -@all +info +eval +evalsha +get +set +del +hget +hset +hdel +hgetall +zadd +zrem +zrevrange +zscore +zremrangebyrank +zremrangebyscore +pttl +pexpire +persist +time
EOF
chmod 0644 ./*
chmod 0600 ca.key
