"""Makes images through the stock librbd, several at a time in one process, and has them mirrored.

    many.py CONF POOL PREFIX COUNT SIZE ORDER FEATURES snapshot|journal
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import rados
import rbd

AT_ONCE = 16

conf, pool, prefix, count, size, order, features, mode = sys.argv[1:]
modes = {"snapshot": rbd.RBD_MIRROR_IMAGE_MODE_SNAPSHOT, "journal": rbd.RBD_MIRROR_IMAGE_MODE_JOURNAL}


def make(io, number):
    name = "%s%03d" % (prefix, number)
    rbd.RBD().create(io, name, int(size), int(order), old_format=False, features=int(features))
    with rbd.Image(io, name) as image:
        image.mirror_image_enable(modes[mode])


with rados.Rados(conffile=conf) as cluster, cluster.open_ioctx(pool) as io:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for made in [threads.submit(make, io, number) for number in range(int(count))]:
            made.result()
