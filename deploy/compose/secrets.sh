#!/bin/sh
# Makes secrets/: keys, certificates and passwords for compose.yaml. Needs OpenSSL 3.
#
# The containers read the files as users of their own, so every user may read a file. Only the owner of the folder can enter
# it on the host.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir secrets
cd secrets

new="openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
leaf="-days 365 -CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE"
{
    $new -days 3650 -subj /CN=tls-sessiond-compose -keyout ca.key -out ca.crt
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
rm ca.key openssl.log

openssl rand -hex 32 >sealing-keys
openssl rand -hex 24 >store-password
openssl rand -hex 12 >grafana-password
# The commands that the daemon uses (docs/shared-store.md). Every other user can only ask whether the store lives.
cat >store.acl <<EOF
user default on nopass -@all +ping
user sessiond on >$(cat store-password) resetkeys ~tsd1:* resetchannels -@all +info +eval +evalsha +get +set +del +hget +hset +hdel +hgetall +zadd +zrem +zrevrange +zremrangebyrank +pttl +pexpire +time
EOF
chmod 0444 ./*
