"""Does to an image what it is told, through librbd's C interface: the bindings for Python lack half of it.

The operations come as JSON: a list of lists, each the name of an operation and its arguments; see `Session`. They are
carried out one after another, on one open image: the journal gets one tag for all of them.
"""
import ctypes
import errno
import json
import os
import random
import sys

RADOS = ctypes.CDLL("librados.so.2")
RBD = ctypes.CDLL("librbd.so.1")
SIZE = ctypes.c_uint64


def check(result, what, allowed=()):
    if result < 0 and -result not in allowed:
        sys.exit("cannot %s: %s" % (what, os.strerror(-result)))
    return result


class Session:
    def __init__(self, conf, pool, image, options):
        self.cluster, self.io, self.image = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        check(RADOS.rados_create2(ctypes.byref(self.cluster), b"ceph", b"client.admin", SIZE(0)), "begin")
        check(RADOS.rados_conf_read_file(self.cluster, conf.encode()), "read the configuration")
        for name, value in options.items():
            check(RADOS.rados_conf_set(self.cluster, name.encode(), value.encode()), "set " + name)
        check(RADOS.rados_connect(self.cluster), "connect")
        check(RADOS.rados_ioctx_create(self.cluster, pool.encode(), ctypes.byref(self.io)), "open the pool")
        check(RBD.rbd_open(self.io, image.encode(), ctypes.byref(self.image), None), "open the image")

    def close(self):
        check(RBD.rbd_close(self.image), "close the image")
        RADOS.rados_ioctx_destroy(self.io)
        RADOS.rados_shutdown(self.cluster)

    # Bytes are told by a seed; 0 stands for zeros.
    @staticmethod
    def bytes(length, seed):
        return random.Random(seed).randbytes(length) if seed else bytes(length)

    def write(self, offset, length, seed):
        check(RBD.rbd_write(self.image, SIZE(offset), SIZE(length), self.bytes(length, seed)), "write")

    def discard(self, offset, length):
        check(RBD.rbd_discard(self.image, SIZE(offset), SIZE(length)), "discard")

    def write_same(self, offset, length, pattern, seed):
        data = self.bytes(pattern, seed)
        done = RBD.rbd_writesame(self.image, SIZE(offset), SIZE(length), data, SIZE(pattern), 0)
        check(done, "write the same")

    def compare_and_write(self, offset, length, compare, write):
        """`compare` and `write` are seeds; a mismatch is no failure."""
        mismatch = SIZE(0)
        done = RBD.rbd_compare_and_write(
            self.image, SIZE(offset), SIZE(length), self.bytes(length, compare), self.bytes(length, write),
            ctypes.byref(mismatch), 0)
        check(done, "compare and write", (errno.EILSEQ,))

    def flush(self):
        check(RBD.rbd_flush(self.image), "flush")

    def burst(self, count, block, seed, span):
        """Random writes of `block` bytes below `span`, 32 at a time."""
        numbers = random.Random(seed)
        flying = []
        for _ in range(count):
            data = numbers.randbytes(block)
            completion = ctypes.c_void_p()
            check(RBD.rbd_aio_create_completion(None, None, ctypes.byref(completion)), "prepare a write")
            offset = numbers.randrange(span // block) * block
            check(RBD.rbd_aio_write(self.image, SIZE(offset), SIZE(block), data, completion), "write")
            flying.append((completion, data))
            if len(flying) == 32:
                self.land(*flying.pop(0))
        for one in flying:
            self.land(*one)

    @staticmethod
    def land(completion, _data):
        check(RBD.rbd_aio_wait_for_complete(completion), "wait for a write")
        check(RBD.rbd_aio_get_return_value(completion), "write")
        RBD.rbd_aio_release(completion)

    def snap_create(self, name):
        check(RBD.rbd_snap_create(self.image, name.encode()), "take a snapshot")

    def snap_remove(self, name):
        check(RBD.rbd_snap_remove(self.image, name.encode()), "remove a snapshot")

    def snap_rename(self, name, new):
        check(RBD.rbd_snap_rename(self.image, name.encode(), new.encode()), "rename a snapshot")

    def snap_protect(self, name):
        check(RBD.rbd_snap_protect(self.image, name.encode()), "protect a snapshot")

    def snap_unprotect(self, name):
        check(RBD.rbd_snap_unprotect(self.image, name.encode()), "unprotect a snapshot")

    def snap_rollback(self, name):
        check(RBD.rbd_snap_rollback(self.image, name.encode()), "roll back")

    def snap_limit(self, limit):
        check(RBD.rbd_snap_set_limit(self.image, SIZE(limit)), "set the snapshot limit")

    def resize(self, size):
        check(RBD.rbd_resize(self.image, SIZE(size)), "resize")

    def flatten(self):
        check(RBD.rbd_flatten(self.image), "flatten")

    def features(self, features, enabled):
        check(RBD.rbd_update_features(self.image, SIZE(features), ctypes.c_uint8(enabled)), "change features")

    def metadata_set(self, key, value):
        check(RBD.rbd_metadata_set(self.image, key.encode(), value.encode()), "set metadata")

    def metadata_remove(self, key):
        check(RBD.rbd_metadata_remove(self.image, key.encode()), "remove metadata")


told = json.loads(sys.argv[1])
session = Session(told["conf"], told["pool"], told["image"], told["options"])
for name, *arguments in told["operations"]:
    getattr(session, name)(*arguments)
session.close()
