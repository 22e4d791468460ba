#!/bin/bash
# Builds blkpatch and runs its main job on a pair of real ext4 images: diff, patch in place, compare.
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked
blkpatch=$PWD/target/release/blkpatch
work=$(mktemp -d)
loop=
cleanup() {
  if [ -n "$loop" ]; then losetup -d "$loop"; fi
  rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

echo "== 1. two images: the second has one changed and one new file"
mkdir -p tree/etc tree/bin
cp -L "$blkpatch" tree/bin/program
seq 1 20000 >tree/etc/settings
image() { # FILE: an image of the tree, made the same way each time
  rm -f "$1"
  truncate -s 64M "$1"
  if command -v mke2fs >/dev/null; then
    mke2fs -q -t ext4 -U 11111111-2222-3333-4444-555555555555 -E hash_seed=66666666-7777-8888-9999-aaaaaaaaaaaa,root_owner=0:0 -d tree "$1"
  else
    echo "(mke2fs is not installed: a tar archive stands in for the file system)"
    tar --sort=name --mtime=@0 -cf - tree | dd of="$1" conv=notrunc status=none
  fi
}
image old.img
sed -i 's/^777$/changed/' tree/etc/settings
head -c 40000 /dev/urandom | base64 >tree/etc/added
image new.img

echo "== 2. blkpatch diff old.img new.img -o update.delta"
"$blkpatch" diff old.img new.img -o update.delta

echo "== 3. the target holds the old image"
cp --sparse=always old.img target.img
target=target.img
if [ "$(id -u)" = 0 ] && loop=$(losetup -f --show target.img 2>/dev/null); then
  target=$loop
else
  loop=
  echo "(not root, or no loop devices: the target is a file)"
fi
"$blkpatch" --quiet verify update.delta "$target" || [ $? = 10 ]

echo "== 4. blkpatch patch update.delta $target"
"$blkpatch" patch update.delta "$target"

cmp --bytes="$(stat -c %s new.img)" "$target" new.img
echo "== 5. the target is byte for byte the new image"
