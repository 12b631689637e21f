#!/usr/bin/env bash
# The image's root file system, by the list in files.txt: made here for the Dockerfile, and run here
# where there is no container engine.
#
#   rootfs.sh build FOLDER            the program from $BLINDAI, its library from $ONNXRUNTIME
#   rootfs.sh run FOLDER TLS [ARG…]   as root: what `docker run -v TLS:/root/tls IMAGE ARG…` runs;
#                                     $CONTAINER_USER as --user, $CAPABILITIES as setpriv takes them
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)

main() {
    case "${1:-}" in
        build) build "${2:?FOLDER}" ;;
        run) run "$(realpath "${2:?FOLDER}")" "$(realpath "${3:?TLS}")" "${@:4}" ;;
        *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
}

build() {
    local root=$1 mode target source
    : "${BLINDAI:?the program}" "${ONNXRUNTIME:?its library}"
    rm -rf "$root"
    while read -r mode target source; do
        source=$(resolve "$source")
        install -D -m "$mode" "$source" "$root$target"
        libraries "$source" "$root"
    done < <(grep -v '^#' "$HERE/files.txt")
    # What a container engine mounts over, and what entrypoint.sh looks at.
    mkdir -p "$root"/{dev,proc,sys,tmp,root/tls}
    chmod 1777 "$root/tmp"
    chmod 0755 "$root/root" "$root/root/tls"
    find "$root" -depth -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
}

# The three names that stand in the list, and nothing else of the environment.
resolve() {
    local path=$1
    path=${path/#'$BLINDAI'/$BLINDAI}
    path=${path/#'$ONNXRUNTIME'/$ONNXRUNTIME}
    printf '%s' "${path/#'$HERE'/$HERE}"
}

# Copies what the dynamic loader would load, under the names by which it looks for it.
libraries() {
    local file=$1 root=$2 library
    [ "$(head -c 4 "$file")" = $'\x7fELF' ] || return 0
    ldd "$file" | grep -q 'not found' && { echo "rootfs: $file needs what is not here" >&2; exit 1; }
    for library in $(ldd "$file" | grep -o '/[^ ]*'); do
        [ -e "$root$library" ] || install -D -m 0755 "$library" "$root$library"
    done
}

# A read-only root of its own, Docker's devices, capabilities and a process tree of its own. Docker's
# filter of system calls and its network are not made here. No chroot: there the kernel would refuse
# workers their namespaces, which it does not in a container.
run() {
    # shellcheck disable=SC2016
    exec env -i PATH="$PATH" unshare --mount --pid --fork --kill-child -- bash -euc '
        root=$1 tls=$2 capabilities=$3 user=$4; shift 4
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=755 tmpfs "$root/dev"
        for device in null zero full random urandom; do
            touch "$root/dev/$device"
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        mkdir "$root/dev/shm" "$root/dev/host"
        mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/dev/shm"
        mount --bind "$tls" "$root/root/tls"
        umount=$(command -v umount)
        libraries=$(ldd "$umount" | sed -n "s|.*=> \(/.*\)/[^/]* (.*|/dev/host\1|p" | sort -u)
        pivot_root "$root" "$root/dev/host"
        cd /
        /lib64/ld-linux-x86-64.so.2 --library-path "${libraries//[[:space:]]/:}" \
            "/dev/host$umount" -l /dev/host
        export PATH=/usr/bin:/bin
        set -- --inh-caps=-all --bounding-set="$capabilities" "$@"
        if [ -n "$user" ]; then set -- --reuid "$user" --regid "$user" --clear-groups "$@"; fi
        exec setpriv "$@"
    ' rootfs "$1" "$2" "${CAPABILITIES:-$DOCKERS}" "${CONTAINER_USER:-}" "${ENTRYPOINT[@]}" "${@:3}"
}

# What Docker leaves to root in a container.
DOCKERS=-all
for name in audit_write chown dac_override fowner fsetid kill mknod net_bind_service net_raw setfcap \
    setgid setpcap setuid sys_chroot; do
    DOCKERS+=,+$name
done
# The Dockerfile says what is started; so nothing else is tried here.
mapfile -t ENTRYPOINT < <(sed -n 's/^ENTRYPOINT //p' "$HERE/Dockerfile" | grep -o '"[^"]*"' | tr -d '"')

main "$@"
