"""ZMQ's options for connections whose other end is silent or gone (DESIGN.md 7).

Who connects pings, and whoever is bound answers that of itself. A bound socket must not ping: where
a routing id was handed over to a new connection, libzmq (4.3.5, and later) reads no more from the
old one; when that breaks, its next ping finds it broken and aborts the process. There it is the
kernel that finds connections whose other end has gone.

Pings are rare: an instance has three connections to each controller, and a ping each second on all
of them cost a controller of 1,000 instances more than their heartbeats. What is said each second on
one of them finds it broken by itself, in 3 s.
"""

from __future__ import annotations

import zmq

CONNECTING: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,
    zmq.CONNECT_TIMEOUT: 1000,
    zmq.HEARTBEAT_IVL: 3000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 2000,
    # What an old connection could not send is not sent after the new one's first words.
    zmq.TCP_MAXRT: 3000,
}
BOUND: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,  # seconds
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 10_000,
}
