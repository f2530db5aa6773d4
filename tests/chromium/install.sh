#!/bin/sh
# What the pages are looked at with, from where people get it: Debian's Chromium where it is missing, Playwright and axe-core from PyPI.
set -eu
cd "$(dirname "$0")"

if ! command -v chromium >/dev/null; then
    command -v apt-get >/dev/null || { echo "the browser tests need chromium, from your system's packages" >&2; exit 1; }
    as_root=""
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo "Installing chromium (once)" >&2
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi

# Beside our environment, not in it: nothing of ours depends on a browser, and 130 MB are much for whoever runs the other tests.
if ! cmp -s requirements.txt packages/.installed; then
    rm -rf packages
    "${PYTHON:-../../.venv/bin/python}" -m pip -qq --disable-pip-version-check --no-input install --no-deps --require-hashes \
        --target packages -r requirements.txt
    cp requirements.txt packages/.installed
fi
