# Reloads the daemon when files below the folders have changed. Runs as the command of tls-sessiond-reload (Containerfile),
# with busybox and tls-sessiond and nothing else.
#
#   reload.sh FOLDER...
#
# PERIOD is the time between two looks, in seconds.
#
# A reload that the daemon refuses is repeated after the next change alone: the daemon goes on with what it has, and its
# metrics and `tls-sessiond doctor` tell that. A look between two files of spiffe-helper ends so: the next look finds both.
set -u
period=${PERIOD:-10}

# Names, inodes, sizes and times. The files are not opened: some are keys.
state() {
    busybox find "$@" -type f -exec busybox stat -c '%n %i %s %Y' {} + | busybox sort
}

trap 'exit 0' TERM INT
loaded=
while :; do
    now=$(state "$@")
    if [ "$now" != "$loaded" ]; then
        tls-sessiond reload
        # 69: the daemon is away, or is just starting. It is asked again.
        [ $? -eq 69 ] || loaded=$now
    fi
    # A wait ends at a signal, a sleep does not.
    busybox sleep "$period" &
    wait $!
done
