"""Carries frames between two interfaces, and delays, duplicates or drops them.

Usage: packets.py NEAR FAR, two interfaces without addresses. A line on standard input sets what happens to frames
from then on: LONGEST_DELAY_MS DUPLICATED_PERCENT DROPPED_PERCENT TCP_PORT. Each frame has a random delay of its own, so
their order changes. With a port other than 0, only frames from that port are affected. Prints "ready" once it carries
frames, and ends at the end of its standard input.
"""

import heapq
import os
import random
import select
import socket
import sys
import time

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15  # A header on each frame: the checksum still to be computed, and how to split a long frame.
LONGEST = 70_000
IP = 10 + 14  # Offset of the IP header, after that header and Ethernet's.
IPV4 = b"\x08\x00"
TCP = 6


def opened(name):
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.bind((name, ETH_P_ALL))
    return end


def source_port(frame):
    """The source port of TCP over IPv4; None for other frames."""
    if len(frame) < IP + 24 or frame[IP - 2 : IP] != IPV4 or frame[IP + 9] != TCP:
        return None
    tcp = IP + 4 * (frame[IP] & 15)
    return int.from_bytes(frame[tcp : tcp + 2])


ends = [opened(name) for name in sys.argv[1:3]]
delay, duplicated, dropped, port = 0, 0, 0, 0
waiting, number = [], 0
print("ready", flush=True)
while True:
    wait = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    readable, _, _ = select.select([0, *ends], [], [], wait)
    if 0 in readable:
        lines = os.read(0, 4096).decode().split()
        if not lines:
            break
        delay, duplicated, dropped, port = map(int, lines[-4:])
    for index, end in enumerate(ends):
        if end not in readable:
            continue
        frame, (_, _, kind, _, _) = end.recvfrom(LONGEST)
        # Outgoing frames were sent by this program.
        if kind == socket.PACKET_OUTGOING:
            continue
        copies, longest = 1, 0
        if not port or source_port(frame) == port:
            copies = 0 if random.randrange(100) < dropped else 2 if random.randrange(100) < duplicated else 1
            longest = delay / 1000
        for _ in range(copies):
            number += 1
            due = time.monotonic() + random.random() * longest
            heapq.heappush(waiting, (due, number, 1 - index, frame))
    while waiting and waiting[0][0] <= time.monotonic():
        _, _, to, frame = heapq.heappop(waiting)
        try:
            ends[to].send(frame)
        except OSError:
            pass  # Frames may be lost.
