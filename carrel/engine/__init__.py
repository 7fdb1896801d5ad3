"""The Engine API and what stands behind it."""

from carrel import lightly

lightly.protobuf()
lightly.msgspec()
