#!/usr/bin/env python3
"""Times `blkpatch patch` on a loop device against what dd needs for the same transfers. Needs root.

    cargo build --release && benches/patch.py --pairs DIR [--runs N] [--direct | --work /dev/shm] [NAME ...]

The yardstick, in one go: dd reads the image once, reads as many bytes again as are touched, writes as many as change,
and syncs once; all with O_DIRECT, as blkpatch does, front to back in large blocks. Yardstick and blkpatch take turns,
each on a fresh copy of the old image, and the minimum counts. The loop device's file lies in the page cache, so this
is a disk as fast as memory, but for syncs, which write to the disk below it; with --work /dev/shm there is none, and
with --direct the loop device passes all requests on to it. Memory is the maximum resident set, which counts code as
well; 'announced' is what `blkpatch info` says beforehand. 'CPU' is what blkpatch takes itself; 'machine' is what all
processors do meanwhile, the kernel's threads that serve the loop device included: no order of the work can be faster
than that, divided by their number. The result of every run is compared with the new image.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

BLKPATCH = Path(__file__).resolve().parent.parent / "target/release/blkpatch"
MIB = 1 << 20


def sh(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Loop:
    """A loop device that holds a copy of an image."""

    def __init__(self, image, length, where, direct):
        self.file = Path(where) / "device.img"
        sh("cp", "--sparse=always", image, self.file)
        os.truncate(self.file, -(-length // 4096) * 4096)
        sh("sync")
        option = "on" if direct else "off"
        self.device = sh("losetup", "-f", "--show", f"--direct-io={option}", self.file)
        try:
            sh("dd", f"if={self.device}", "of=/dev/null", "bs=4M", "iflag=direct")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self.device

    def __exit__(self, *_):
        sh("losetup", "-d", self.device)
        self.file.unlink()


def busy():
    """CPU seconds that all processors together have worked since the system started."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def yardstick(device, info, new):
    reread, write = info["read_back_bytes"], info["changed_blocks"] * 4096
    start = time.monotonic()
    sh("dd", f"if={device}", "of=/dev/null", "bs=4M", "iflag=direct")
    sh("dd", f"if={device}", "of=/dev/null", "bs=1M", "iflag=direct,count_bytes", f"count={reread}")
    sh("dd", f"if={new}", f"of={device}", "bs=1M", "iflag=count_bytes", "oflag=direct", "conv=fsync,notrunc", f"count={write}")
    return time.monotonic() - start


def patch(device, delta):
    start, worked = time.monotonic(), busy()
    run = subprocess.Popen([BLKPATCH, "-q", "patch", delta, device])
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"blkpatch failed: {status}")
    return time.monotonic() - start, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, busy() - worked


def measure(pairs, name, args, where):
    old, new, delta = pairs / f"{name}.old", pairs / f"{name}.new", Path(where) / "delta"
    subprocess.run([BLKPATCH, "-q", "diff", old, new, "-o", delta], check=True, stdin=subprocess.DEVNULL)
    info = json.loads(sh(BLKPATCH, "info", "--json", delta))
    length = max(old.stat().st_size, new.stat().st_size)
    best_dd, best, memory, cpu, machine = 1e9, 1e9, 0, 0, 0
    for _ in range(args.runs):
        with Loop(old, length, where, args.direct) as device:
            sh("dd", f"if={new}", "of=/dev/null", "bs=4M")
            best_dd = min(best_dd, yardstick(device, info, new))
        with Loop(old, length, where, args.direct) as device:
            wall, rss, used, worked = patch(device, delta)
            sh("cmp", "-n", str(new.stat().st_size), device, new)
            best, memory, cpu, machine = min((best, memory, cpu, machine), (wall, rss, used, worked))
    print(f"| {name} | {info['written_bytes'] / MIB:,.0f} | {info['barriers']} | {best_dd:.2f} | {best:.2f} | {best / best_dd:.2f} "
          f"| {cpu:.2f} | {machine:.2f} | {memory / MIB:.1f} | {info['memory_bytes'] / MIB:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--work", type=Path, help="where the loop device's file lies [default: beside the pairs]")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in args.pairs.glob("*.old"))
    print("| pair | MiB written | barriers | dd, s | patch, s | ratio | CPU, s | machine, CPU s | memory, MiB | announced |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=args.work or args.pairs) as where:
        for name in names:
            measure(args.pairs, name, args, where)


if __name__ == "__main__":
    main()
