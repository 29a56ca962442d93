#!/bin/sh
# dpkg: configure [OLD-VERSION]. rpm: 1 for an installation, 2 for an upgrade.
set -e
systemd-sysusers tls-sessiond.conf
systemd-tmpfiles --create tls-sessiond.conf
# Nothing is started: the daemon is of use once the administrator has written a context.
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# Nothing is restarted: a restart loses the sessions in memory, and breaks connections of the daemon's engine and of proxies.
if [ -n "$2" ] || [ "$1" = 2 ]; then
    running=$(systemctl list-units --plain --no-legend --state=active 'tls-sessiond.service' 'tls-sessiond@*.service' | cut -d ' ' -f 1)
    for unit in $running; do
        echo "tls-sessiond: $unit runs the old version. A restart loses the sessions in memory: systemctl restart $unit"
    done
    if systemctl --quiet is-active tls-sessiond-proxy.service; then
        echo "tls-sessiond: tls-sessiond-proxy.service runs the old version. A restart breaks its connections: systemctl restart tls-sessiond-proxy"
    fi
fi
