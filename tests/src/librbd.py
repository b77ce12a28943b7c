"""Holds one image open through the stock librbd and does to it what its standard input says, a command per line.

    write OFFSET HEX            same OFFSET LENGTH HEX      compare OFFSET HEX-TO-BE-THERE HEX
    discard OFFSET LENGTH       zeroes OFFSET LENGTH        flush
    lock (and give the lock to nobody who asks for it)
    burst COUNT LENGTH DEPTH SEED SIZE
    rollback SNAPSHOT           crowd WRITERS ROUNDS LENGTH SEED                disperse

Each is answered by a line with what librbd returned: a length, 0, or a negated errno. A burst writes random bytes at
random multiples of LENGTH below SIZE, so many at once, without a flush.

A crowd is so many threads that write at once from here on, each within LENGTH bytes of its own, one thing after the other
and each kind of thing once in a round. It may be that the image is too short meanwhile. It disperses when it is done; the
answer is how often the rarest kind of write came about.
"""

import collections
import ctypes
import errno
import random
import sys
import threading

conf, pool, namespace, name = sys.argv[1:]
rados = ctypes.CDLL("librados.so.2")
rbd = ctypes.CDLL("librbd.so.1")
u64, size_t = ctypes.c_uint64, ctypes.c_size_t
for function in ("rbd_write", "rbd_writesame", "rbd_compare_and_write", "rbd_write_zeroes"):
    getattr(rbd, function).restype = ctypes.c_ssize_t
rbd.rbd_aio_get_return_value.restype = ctypes.c_ssize_t


def check(result, what):
    if result < 0:
        sys.exit("cannot %s: error %d" % (what, result))


def burst(image, count, length, depth, seed, size):
    chance = random.Random(seed)
    under_way, worst = [], 0

    def finish():
        completion, _ = under_way.pop(0)
        rbd.rbd_aio_wait_for_complete(completion)
        result = rbd.rbd_aio_get_return_value(completion)
        rbd.rbd_aio_release(completion)
        return min(worst, result)

    for _ in range(count):
        if len(under_way) == depth:
            worst = finish()
        data = chance.getrandbits(length * 8).to_bytes(length, "little")
        completion = ctypes.c_void_p()
        check(rbd.rbd_aio_create_completion(None, None, ctypes.byref(completion)), "begin a write")
        offset = chance.randrange(size // length) * length
        check(rbd.rbd_aio_write(image, u64(offset), size_t(length), data, completion), "begin a write")
        under_way.append((completion, data))
    while under_way:
        worst = finish()
    return worst


BLOCK = 4096


def hexadecimal(chance, length):
    return chance.getrandbits(length * 8).to_bytes(length, "little").hex()


def things_to_do(chance, start, blocks):
    """What a writer of a crowd does in a round: commands, and what each counts as."""

    def place(most=1):
        length = chance.randrange(1, most + 1)
        return start + chance.randrange(blocks - length + 1) * BLOCK, length * BLOCK

    things = []
    for _ in range(4):
        things.append(("random", "write %d %s" % (place()[0], hexadecimal(chance, BLOCK))))
    # One after the other, and across objects.
    offset, length = place(32)
    for part in range(0, length, BLOCK):
        things.append(("sequential", "write %d %s" % (offset + part, hexadecimal(chance, BLOCK))))
    offset, _ = place()
    ragged = min(offset + chance.randrange(BLOCK), start + (blocks - 1) * BLOCK)
    things.append(("ragged", "write %d %s" % (ragged, hexadecimal(chance, chance.randrange(1, BLOCK)))))
    things.append(("discard", "discard %d %d" % place(80)))
    things.append(("zeroes", "zeroes %d %d" % place(40)))
    things.append(("same", "same %d %d %s" % (*place(16), hexadecimal(chance, 512))))
    # librbd compares a sector, no more.
    offset, there, new = place()[0], hexadecimal(chance, 512), hexadecimal(chance, 512)
    things.append(("random", "write %d %s" % (offset, there)))
    things.append(("compare", "compare %d %s %s" % (offset, there, new)))
    things.append(("mismatch", "compare %d %s %s" % (offset, there, new)))
    things.append(("flush", "flush"))
    return things


class Crowd:
    def __init__(self, image, writers, rounds, length, seed):
        self.counts, self.wrong = collections.Counter(), []

        def write(number):
            chance = random.Random("%d of crowd %d" % (number, seed))
            for _ in range(rounds):
                for kind, command in things_to_do(chance, number * length, length // BLOCK):
                    verb, *words = command.split()
                    self.count(kind, run(image, verb, words))

        self.threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        for thread in self.threads:
            thread.start()

    def count(self, kind, result):
        if (result == -errno.EILSEQ) if kind == "mismatch" else (result >= 0):
            self.counts[kind] += 1
        # Beyond the end, while the image is short; or somebody changed the block in between.
        elif result < 0 and result not in (-errno.EINVAL, -errno.EILSEQ):
            self.wrong.append(result)

    def disperse(self):
        for thread in self.threads:
            thread.join()
        kinds = {kind for kind, _ in things_to_do(random.Random(0), 0, 128)}
        return min(self.wrong) if self.wrong else min(self.counts[kind] for kind in kinds)


crowds = []


def run(image, command, words):
    if command == "write":
        data = bytes.fromhex(words[1])
        return rbd.rbd_write(image, u64(int(words[0])), size_t(len(data)), data)
    if command == "same":
        data = bytes.fromhex(words[2])
        offset, length = u64(int(words[0])), size_t(int(words[1]))
        return rbd.rbd_writesame(image, offset, length, data, size_t(len(data)), 0)
    if command == "compare":
        there, data, mismatch = bytes.fromhex(words[1]), bytes.fromhex(words[2]), u64()
        offset, length = u64(int(words[0])), size_t(len(data))
        return rbd.rbd_compare_and_write(image, offset, length, there, data, ctypes.byref(mismatch), 0)
    if command == "discard":
        return rbd.rbd_discard(image, u64(int(words[0])), u64(int(words[1])))
    if command == "zeroes":
        return rbd.rbd_write_zeroes(image, u64(int(words[0])), size_t(int(words[1])), 0, 0)
    if command == "flush":
        return rbd.rbd_flush(image)
    if command == "lock":
        return rbd.rbd_lock_acquire(image, 0)  # RBD_LOCK_MODE_EXCLUSIVE
    if command == "burst":
        return burst(image, *map(int, words))
    if command == "rollback":
        return rbd.rbd_snap_rollback(image, words[0].encode())
    if command == "crowd":
        crowds.append(Crowd(image, *map(int, words)))
        return 0
    if command == "disperse":
        return crowds.pop().disperse()
    sys.exit("there is no command " + command)


cluster, io, image = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
check(rados.rados_create(ctypes.byref(cluster), b"admin"), "make a handle")
check(rados.rados_conf_read_file(cluster, conf.encode()), "read the configuration")
check(rados.rados_connect(cluster), "connect")
check(rados.rados_ioctx_create(cluster, pool.encode(), ctypes.byref(io)), "open the pool")
rados.rados_ioctx_set_namespace(io, namespace.encode())
check(rbd.rbd_open(io, name.encode(), ctypes.byref(image), None), "open the image")
address = ctypes.c_char_p()
check(rados.rados_getaddrs(cluster, ctypes.byref(address)), "learn the address")
print(address.value.decode(), flush=True)
for line in sys.stdin:
    command, *words = line.split()
    print(run(image, command, words), flush=True)
check(rbd.rbd_close(image), "close the image")
rados.rados_ioctx_destroy(io)
rados.rados_shutdown(cluster)
