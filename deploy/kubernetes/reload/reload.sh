# Reloads the daemon when files below the folders have changed. Runs as the command of tls-sessiond-reload (Containerfile),
# with busybox and tls-sessiond and nothing else.
#
#   reload.sh FOLDER...
#
# PERIOD is the time between two looks at the files. REPEAT is the time after which a reload that failed is repeated. Both are in
# seconds.
#
# A failed reload changes nothing: the daemon goes on with what it has, and its metrics and `tls-sessiond doctor` tell that. The
# cause can end without a change of the files, such as a store that was away. A look between two files of spiffe-helper leads to
# a failed reload too: the next look finds both.
set -u
period=${PERIOD:-10}
repeat=${REPEAT:-300}

# Names, inodes, sizes and times. The files are not opened: some are keys.
state() {
    busybox find "$@" -type f -exec busybox stat -c '%n %i %s %y' {} + | busybox sort
}

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
        tls-sessiond reload
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
