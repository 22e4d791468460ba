#!/bin/bash
# Passes the tests. As root on Debian or Ubuntu, installs the system packages that they use first.
set -euo pipefail
cd "$(dirname "$0")"
missing=
for pair in mke2fs:e2fsprogs losetup:mount cmp:diffutils flock:util-linux qemu-storage-daemon:qemu-utils rdiff:rdiff \
  sfdisk:fdisk sgdisk:gdisk partx:util-linux mkswap:util-linux mandoc:mandoc man:man-db strip:binutils gzip:gzip \
  xz:xz-utils zstd:zstd bzip2:bzip2; do
  command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
  else
    echo "WARNING: not installed, and this is not root on Debian or Ubuntu:$missing. Tests that need them are skipped." >&2
  fi
fi
exec cargo test --locked --no-fail-fast "$@"
