#!/bin/sh
# Debian's Chromium, for the tests marked `browser`. They skip without it.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core
