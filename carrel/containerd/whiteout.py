"""How a layer says "not here any more": ``.wh.`` names in a tar, other things in overlay.

    in the tar              in an overlay upper directory
    a/.wh.b                 a/b, a character device 0:0
    a/.wh..wh..opq          trusted.overlay.opaque=y on a
"""

from __future__ import annotations

import os
import stat
from errno import ENODATA, ENOTSUP

PREFIX = b".wh."
META_PREFIX = b".wh..wh."
OPAQUE_NAME = b".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
#: set by overlayfs inside an upper directory; they describe the mount, not the image
OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


def make(dir_fd: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)


def is_whiteout(st: os.stat_result) -> bool:
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def make_opaque(fd: int) -> None:
    os.setxattr(fd, OPAQUE_XATTR, b"y")


def is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (ENODATA, ENOTSUP):
            return False
        raise
