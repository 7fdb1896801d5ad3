"""Carrel: a container engine for Linux, from the command line down to the kernel."""

__version__ = "0.1.0"
