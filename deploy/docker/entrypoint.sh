#!/bin/sh
# Starts the program given, never as root.
#
# `docker run -v "$PWD/tls:/root/tls"` brings a folder that belongs to somebody of the host, and Docker
# makes it for root when it is missing. The server must read it and may have to write into it. So a
# container that is started as root becomes the folder's owner; what is root's is given away first.
# With `--user`, or with USER in an image built on this one, nothing of it happens.
set -eu

NOBODY=65532
TLS=/root/tls

if [ "$(id -u)" != 0 ]; then
    exec "$@"
fi
owner=$(stat -c %u "$TLS")
if [ "$owner" = 0 ]; then
    owner=$NOBODY
    chown "$owner" "$TLS"
fi
for file in "$TLS/host_server.pem" "$TLS/host_server.key"; do
    # Not through a link: it may lead to a file that is nobody's business here.
    if [ -f "$file" ] && [ ! -L "$file" ] && [ "$(stat -c %u "$file")" = 0 ]; then
        chown -h "$owner" "$file"
    fi
done
exec setpriv --reuid "$owner" --regid "$owner" --clear-groups --inh-caps=-all --bounding-set=-all \
    --no-new-privs "$@"
