#!/bin/sh
# Makes the folders from which tests/deploy/machine.py boots machines, if they are missing: FOLDER/debian-12, which has
# systemd 252, and FOLDER/debian-13, which has systemd 257. Needs root, mmdebstrap and debian-archive-keyring.
#
#   tests/deploy/machines.sh FOLDER
set -eu

[ $# -eq 1 ] || {
    echo "machines.sh: expected FOLDER" >&2
    exit 1
}
folder=$1
# The commands of the READMEs use sudo and usermod.
packages=systemd,passwd,sudo

machine() {
    [ -e "$folder/$1/made" ] || {
        echo "machines.sh: mmdebstrap $2"
        rm -rf "${folder:?}/$1"
        mkdir -p "$folder"
        mmdebstrap --quiet --variant=apt --include="$packages" --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
            "$2" "$folder/$1" http://deb.debian.org/debian
        touch "$folder/$1/made"
    }
}
machine debian-12 bookworm
machine debian-13 trixie
