"""TCP ports of this machine."""

import socket

from foundation.errors import LifecycleError

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, chosen by the system."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def require_free(port: int, what: str, setting: str) -> None:
    """Raise LifecycleError if something listens on `port`; the message names the setting that chooses another port."""
    if not is_free(port):
        raise LifecycleError(
            f"Port {port} is in use, so {what} can't start: stop the program that listens there, or choose another port with {setting}."
        )
