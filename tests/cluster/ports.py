"""Ports of this machine for services of the tests."""

import socket


def free_port() -> int:
    """A port on which no process listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
