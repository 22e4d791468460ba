#!/usr/bin/env python3
"""Times `blkpatch sync` on a loop device against comparing with cmp and writing what changed with dd. Needs root.

    cargo build --release && benches/sync.py --pairs DIR [--runs N] [--direct] [--others] [--sign] [NAME ...]

Each pair is DIR/NAME.old, which the device holds, and DIR/NAME.new, the image. The yardstick, in one go: cmp reads image
and device over their whole length, dd writes as many bytes as differ (O_DIRECT, front to back, large blocks), and one
sync follows. cmp stops at the first difference, so it gets a device that holds the new image: the same bytes are read.
With --others, bmaptool, rsync and blocksync-fast (followed by a sync) take turns with them where they are on PATH. Everybody
starts from a fresh device over a copy of the old image; the image and the device's file lie in the page cache (with --direct
the loop device passes requests on to the disk below). The minimum counts, and the ratio is to the yardstick. Every result is
compared with the image. With --sign, `sign` takes turns with `rdiff signature`, both of OLD: those ratios are to rdiff.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from patch import BLKPATCH, MIB, Loop, sh

BLOCK = 4096
BLOCKSYNC = "blocksync-fast"


def changed_bytes(old, new):
    changed = 0
    with open(old, "rb") as a, open(new, "rb") as b:
        while chunk := b.read(MIB):
            before = a.read(MIB)
            if before != chunk:
                changed += sum(before[i : i + BLOCK] != chunk[i : i + BLOCK] for i in range(0, len(chunk), BLOCK))
    return changed * BLOCK


def timed(*command):
    start = time.monotonic()
    run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    rss = 0
    # What the system reports at the end is at least what this program had when it forked: look meanwhile.
    while True:
        pid, status, usage = os.wait4(run.pid, os.WNOHANG)
        wall = time.monotonic() - start
        if pid:
            break
        try:
            peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{run.pid}/status").read_text())
            rss = int(peak[1]) * 1024 if peak else rss
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    if status:
        raise SystemExit(f"{command[0]} failed: {status}")
    return wall, rss, usage.ru_utime + usage.ru_stime


def yardstick(pair, device, args):
    """The device holds the new image."""
    start = time.monotonic()
    sh("cmp", "-n", str(pair["length"]), pair["new"], device)
    sh("dd", f"if={pair['new']}", f"of={device}", "bs=1M", "iflag=count_bytes", "oflag=direct", "conv=notrunc",
       f"count={pair['changed']}")
    sh("sync", device)
    return time.monotonic() - start, 0, 0


def tools(pair, args):
    """Name: (command for a device, what the device holds first)."""
    new, old = str(pair["new"]), pair["old"]
    found = {"blkpatch sync": (lambda device: [BLKPATCH, "-q", "sync", new, device], old)}
    if not args.others:
        return found
    if shutil.which("rsync"):
        options = ["--inplace", "--write-devices", "--no-whole-file", "--fsync"]
        found["rsync --inplace"] = (lambda device: ["rsync", *options, new, device], old)
    if shutil.which("bmaptool"):
        found["bmaptool copy"] = (lambda device: ["bmaptool", "-q", "copy", "--nobmap", new, device], old)
    if shutil.which("blocksync-fast"):
        found[BLOCKSYNC] = (lambda device: ["blocksync-fast", "--silent", "-s", new, "-d", device], old)
    return found


def synced(tool, command, device):
    """Times a tool until what it has written is durable."""
    wall, rss, cpu = timed(*command(device))
    start = time.monotonic()
    if tool == BLOCKSYNC:
        sh("sync", device)
    return wall + time.monotonic() - start, rss, cpu


def measure_sign(name, args, where):
    old, out = args.pairs / f"{name}.old", Path(where) / "signature"
    commands = {
        "rdiff signature": ["rdiff", "-R", "rollsum", "-H", "md4", "-b", "4096", "-S", "8", "signature", old, out],
        "blkpatch sign": [BLKPATCH, "-q", "sign", old, "-o", out],
    }
    best = {}
    for _ in range(args.runs):
        for tool, command in commands.items():
            sh("dd", f"if={old}", "of=/dev/null", "bs=4M")
            out.unlink(missing_ok=True)
            took = timed(*map(str, command))
            best[tool] = min(best.get(tool, took), took)
    for tool, (wall, rss, cpu) in best.items():
        ratio = wall / best["rdiff signature"][0]
        print(f"| {name} | {old.stat().st_size / MIB:,.0f} | | {tool} | {wall:.2f} | {ratio:.2f} | {cpu:.2f} | {rss / MIB:.1f} |",
              flush=True)


def once(pair, holds, where, args, run):
    length = max(pair["old"].stat().st_size, pair["length"])
    with Loop(holds, length, where, args.direct) as device:
        sh("dd", f"if={pair['new']}", "of=/dev/null", "bs=4M")
        sh("sync")
        took = run(device)
        sh("cmp", "-n", str(pair["length"]), device, pair["new"])
    return took


def measure(name, args, where):
    old, new = args.pairs / f"{name}.old", args.pairs / f"{name}.new"
    pair = {"old": old, "new": new, "length": new.stat().st_size, "changed": changed_bytes(old, new)}
    best = {}
    for _ in range(args.runs):
        took = once(pair, new, where, args, lambda device: yardstick(pair, device, args))
        best["cmp and dd"] = min(best.get("cmp and dd", took), took)
        for tool, (command, holds) in tools(pair, args).items():
            took = once(pair, holds, where, args, lambda device: synced(tool, command, device))
            best[tool] = min(best.get(tool, took), took)
    base = best["cmp and dd"][0]
    for tool, (wall, rss, cpu) in best.items():
        print(f"| {name} | {pair['length'] / MIB:,.0f} | {pair['changed'] / MIB:,.0f} | {tool} | {wall:.2f} | {wall / base:.2f} "
              f"| {cpu:.2f} | {rss / MIB:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--others", action="store_true", help="measure rsync, bmaptool and blocksync-fast as well")
    parser.add_argument("--sign", action="store_true", help="measure sign and rdiff signature as well")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in args.pairs.glob("*.old"))
    print("| pair | MiB | MiB changed | tool | s | ratio | CPU, s | memory, MiB |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    # Being ended, too, detaches the device.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(dir=args.pairs) as where:
        for name in names:
            measure(name, args, where)
            if args.sign:
                measure_sign(name, args, where)


if __name__ == "__main__":
    main()
