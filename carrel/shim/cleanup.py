"""``delete``: what a shim that died would have done at its end."""

from __future__ import annotations

import os
import sys
import time

from carrel.errdefs import CarrelError
from carrel.oci import json
from carrel.shim import rootfs
from carrel.shim.driver import RECORD
from carrel.shim.events import timestamp
from carrel.shim.loop import Loop, run
from carrel.shim.reaper import Reaper
from carrel.shim.schema import SCHEMAS
from carrel.shim.service import make_driver
from carrel.shim.wire import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from carrel.shim.wire import Message

#: 128 + SIGKILL: whatever ran was killed
KILLED = 137


def clean_up(namespace: str, identity: str, bundle: str) -> bytes:
    """Gives the encoded DeleteResponse; problems are warnings on stderr."""
    record = _read_record(bundle)
    if record is not None:
        record["namespace"] = namespace
        _delete_container(record, identity, bundle)
    try:
        rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    except OSError as error:
        _warn(f"failed to unmount the root file system: {error}")
    _remove_socket(bundle)
    return encode(SCHEMAS["DeleteResponse"], {
        "pid": _init_pid(bundle), "exit_status": KILLED,
        "exited_at": timestamp(time.time_ns())})


def _read_record(bundle: str) -> Message | None:
    try:
        with open(os.path.join(bundle, RECORD), encoding="utf-8") as file:
            found = json.loads(file.read(), RECORD)
    except FileNotFoundError:
        return None  # the shim died before Create
    except CarrelError as error:
        _warn(str(error))
        return None
    return found if isinstance(found, dict) else None


def _delete_container(record: Message, identity: str, bundle: str) -> None:
    loop = Loop()
    reaper = Reaper(loop)
    try:
        work = run(make_driver(loop, reaper, record, identity, bundle).delete(force=True))
        while not work.done:
            loop.turn()
        if work.error is not None:
            _warn(f"failed to remove the container: {work.error}")
    except (CarrelError, OSError) as error:
        _warn(f"failed to remove the container: {error}")
    finally:
        reaper.close()
        loop.close()


def _init_pid(bundle: str) -> int:
    try:
        with open(os.path.join(bundle, "init.pid"), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _remove_socket(bundle: str) -> None:
    try:
        with open(os.path.join(bundle, "address"), encoding="utf-8") as file:
            os.unlink(file.read().strip().removeprefix("unix://"))
    except FileNotFoundError:
        pass
    except OSError as error:
        _warn(f"failed to remove the shim's socket: {error}")


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")
