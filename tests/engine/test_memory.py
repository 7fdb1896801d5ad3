"""What the daemons hold in memory, by what they import."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: nothing of these is used by a daemon that only runs containers
_FOREIGN = ("aiohttp", "typing_extensions", "pickle", "google.protobuf.text_format",
            "google.protobuf.internal.decoder", "http.cookies", "email", "zstandard", "isal")

_CODE = """
import sys
import carrel.{0}.main
{1}
from carrel.proto import tasks_pb2
from google.protobuf import any_pb2, timestamp_pb2
stamp = timestamp_pb2.Timestamp(seconds=3)
packed = any_pb2.Any()
packed.Pack(stamp)
request = tasks_pb2.CreateTaskRequest(container_id="x", options=packed)
again = tasks_pb2.CreateTaskRequest.FromString(request.SerializeToString())
again.options.Unpack(stamp)
assert stamp.seconds == 3 and again == request and "x" in str(again)
import carrel.lightly
carrel.lightly.msgspec()
import msgspec
class Point(msgspec.Struct):
    x: int = 0
    y: "list[str] | None" = None
assert msgspec.json.decode(b'{{"y": ["a"]}}', type=Point).y == ["a"]
print([name for name in {2!r} if name in sys.modules])
# and yet it is there for who asks
from google.protobuf.internal import python_message
assert python_message.GeneratedProtocolMessageType and "pickle" in sys.modules
import typing_extensions
assert typing_extensions.Protocol
"""


@pytest.mark.parametrize(("daemon", "also"), [
    ("engine", "import carrel.engine.daemon, carrel.engine.images, carrel.network.controller\n"
               "from carrel.engine import areas\nareas.load()"),
    ("containerd", "import carrel.containerd.service")])
def test_what_is_imported(daemon: str, also: str) -> None:
    done = subprocess.run([sys.executable, "-c", _CODE.format(daemon, also, _FOREIGN)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
