#!/bin/sh
# dpkg: remove, purge, upgrade NEW-VERSION, and others. rpm: 0 for a removal, 1 for an upgrade.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ "$1" = purge ] || exit 0
rm -rf /run/tls-sessiond /run/tls-sessiond-* /var/log/tls-sessiond /var/log/tls-sessiond-* /var/lib/tls-sessiond /var/lib/tls-sessiond-*
# dpkg removes the configuration of the package. Keys and certificates belong to the administrator, and stay. So does the
# user: another user with its number would own them.
[ ! -d /etc/tls-sessiond ] || rmdir /etc/tls-sessiond 2>/dev/null ||
    echo "tls-sessiond: /etc/tls-sessiond has files that the package did not bring"
