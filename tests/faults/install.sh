#!/bin/sh
# The programs that the long form of the fault suite needs and that no wheel carries: Debian's packages, where they are missing.
set -eu

packages=""
have() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]; }
have pgbouncer || packages="$packages pgbouncer"
have patroni || packages="$packages patroni"
have etcd || packages="$packages etcd-server"
have faketime || packages="$packages faketime"
[ -n "$packages" ] || exit 0
command -v apt-get >/dev/null || { echo "make faults needs, from your system's packages:$packages" >&2; exit 1; }
as_root=""
[ "$(id -u)" -eq 0 ] || as_root=sudo
echo "Installing$packages (once)" >&2
$as_root apt-get update -qq
# Unquoted on purpose: a list of words.
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null
