#!/bin/sh
# Reloads the daemon, or a proxy of the same pod, when files below the folders have changed. Runs as the command of
# tls-sessiond-reload and tls-sessiond-proxy-reload (Containerfile), with busybox and tls-sessiond and nothing else.
#
#   reload.sh FOLDER...
#   reload.sh --proxy FOLDER...
#
# PERIOD is the time between two looks at the files. REPEAT is the time after which a reload that failed is repeated. Both are in
# seconds.
#
# A failed reload changes nothing: the daemon goes on with what it has, and its metrics and `tls-sessiond doctor` tell that. The
# cause can end without a change of the files, such as a store that was away. A look between two files of spiffe-helper leads to
# a failed reload too: the next look finds both.
#
# A proxy gets SIGHUP, and its metrics and its log tell how the reload went. Its user is that of this container, and the pod has
# shareProcessNamespace.
set -u
period=${PERIOD:-10}
repeat=${REPEAT:-300}

# Names, inodes, sizes and times. The files are not opened: some are keys.
state() {
    busybox find "$@" -type f -exec busybox stat -c '%n %i %s %y' {} + | busybox sort
}

reload_daemon() {
    tls-sessiond reload
}

# 69: there is no proxy yet.
reload_proxy() {
    for process in /proc/[0-9]*; do
        case $(busybox tr '\0' ' ' <"$process/cmdline" 2>/dev/null) in
        *tls-sessiond\ proxy\ *) kill -HUP "${process#/proc/}" 2>/dev/null && echo "SIGHUP to the proxy" && return ;;
        esac
    done
    echo "no proxy runs as this user" >&2
    return 69
}

reload=reload_daemon
if [ "${1:-}" = --proxy ]; then
    reload=reload_proxy
    shift
fi
trap 'exit 0' TERM INT
# The state of the files at the last reload.
loaded=
# The uptime at which that reload is repeated, if it failed. Not the time of day, which can be set.
due=
while :; do
    now=$(state "$@")
    read -r uptime _ </proc/uptime
    uptime=${uptime%.*}
    if [ "$now" != "$loaded" ] || { [ -n "$due" ] && [ "$uptime" -ge "$due" ]; }; then
        $reload
        case $? in
        0) loaded=$now due= ;;
        # The daemon is away, or is just starting. The next look calls it again.
        69) loaded= due= ;;
        *) loaded=$now due=$((uptime + repeat)) ;;
        esac
    fi
    # A wait ends at a signal, a sleep does not.
    busybox sleep "$period" &
    wait $!
done
