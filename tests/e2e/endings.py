"""What the tests of a program's endings share: the page's table of signals, and a connection that stands still."""

import os
import pathlib
import re
import select
import socket
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("server", "worker")


class Valve:
    """A port that passes connections on to another one, until it has passed `bytes_max` of one connection in one direction,
    "up" to that port or "down" from it: whatever follows waits, the other way too."""

    def __init__(self, test, address, direction, bytes_max):
        host, port = address.rsplit(":", 1)
        self.target, self.direction, self.bytes_max = (host, int(port)), direction, bytes_max
        self.shut, self.held = threading.Event(), []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.ended = os.pipe()
        thread = threading.Thread(target=self.run)
        thread.start()

        def end():
            os.close(self.ended[1])
            thread.join()
            os.close(self.ended[0])
        test.addCleanup(end)

    def run(self):
        peers, passed = {}, {}  # of each socket: the one that its bytes go to, and how many did
        while True:
            readable = select.select([self.listening, self.ended[0], *peers], [], [])[0]
            if self.ended[0] in readable:
                break
            for one in readable:
                if one is self.listening:
                    near = one.accept()[0]
                    try:
                        far = socket.create_connection(self.target)
                    except OSError:  # it has ended
                        near.close()
                        continue
                    peers |= {near: far, far: near}
                    passed |= {near: (0, "up"), far: (0, "down")}
                    continue
                if one not in peers:
                    continue  # its other end has just gone
                other, (count, direction) = peers[one], passed[one]
                try:
                    data = one.recv(1 << 16)
                    other.sendall(data)
                except OSError:
                    data = b""
                passed[one] = count + len(data), direction
                if not data:
                    for gone in (one, other):
                        peers.pop(gone)
                        gone.close()
                elif direction == self.direction and passed[one][0] > self.bytes_max:
                    peers.pop(one), peers.pop(other)  # open, and nobody looks at them any more
                    self.held += one, other
                    self.shut.set()
        for one in [self.listening, *peers, *self.held]:
            one.close()


def signal_table():
    """{program: {signal: first word of what it does}} of the page."""
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page[page.index("### Signals"):]
    rows = {program: {} for program in PROGRAMS}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) != 3 or not cells[0].startswith("SIG"):
            continue
        for name in cells[0].split(", "):
            for program, cell in zip(PROGRAMS, cells[1:]):
                rows[program][name.removeprefix("SIG")] = re.match(r"\w+", cell).group()
    return rows
