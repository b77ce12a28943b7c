"""Writes stamped blocks to an image through librbd, in batches, with a flush behind each, as a database does.

Which blocks a batch writes follows from the seed alone: `history.rs` beside this file works it out in the same way.
Prints "batch N" when batch N is durable. Ends behind the current batch when its standard input is closed.
"""
import json
import sys
import threading
import time

import rados
import rbd

MASK = (1 << 64) - 1
BLOCK = 4096


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def batch(random, p):
    """The operations of the next batch: (block, is a discard); no block twice."""
    count = p["batch_min"] + random.next() % (p["batch_max"] - p["batch_min"] + 1)
    operations = {}
    for _ in range(count):
        block = random.next() % p["blocks"]
        discard = random.next() % 16 < p["discards"]
        if block not in operations:
            operations[block] = discard
    return operations


def main():
    p = json.loads(sys.argv[1])
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    cluster = rados.Rados(conffile=p["conf"], name="client.admin")
    # Otherwise librbd leaves out discards of less than 64 KiB.
    cluster.conf_set("rbd_discard_granularity_bytes", "4096")
    cluster.connect()
    ioctx = cluster.open_ioctx(p["pool"])
    image = rbd.Image(ioctx, p["image"])
    slots = threading.Semaphore(p["depth"])
    failures = []

    def done(completion):
        if completion.get_return_value() < 0:
            failures.append(completion.get_return_value())
        slots.release()

    random, seq, number = Random(p["seed"]), 0, 0
    while not stop.is_set() and not failures and (p["batches"] == 0 or number < p["batches"]):
        for block, discard in batch(random, p).items():
            seq += 1
            slots.acquire()
            if discard:
                image.aio_discard(block * BLOCK, BLOCK, done)
            else:
                stamp = seq.to_bytes(8, "little") + block.to_bytes(8, "little")
                image.aio_write(stamp * (BLOCK // 16), block * BLOCK, done)
        for _ in range(p["depth"]):
            slots.acquire()
        image.flush()
        for _ in range(p["depth"]):
            slots.release()
        number += 1
        if p["snap_every"] and number % p["snap_every"] == 0:
            image.create_snap("batch-%d" % number)
        print("batch", number, flush=True)
        time.sleep(p["pause_s"])
    image.close()
    if failures:
        sys.exit("a write failed with errno %d" % -failures[0])


main()
