#!/bin/sh
# dpkg: remove, or upgrade NEW-VERSION. rpm: 0 for a removal, 1 for an upgrade.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
if [ -d /run/systemd/system ]; then
    systemctl stop tls-sessiond-proxy.service tls-sessiond.socket tls-sessiond.service 'tls-sessiond@*.service'
fi
systemctl --quiet --no-reload disable tls-sessiond-proxy.service tls-sessiond.socket tls-sessiond.service tls-sessiond@.service 2>/dev/null || true
