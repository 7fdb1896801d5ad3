"""The containerd layer: content, images, snapshots, containers, tasks."""

from carrel import lightly

lightly.protobuf()
