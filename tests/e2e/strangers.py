#!/usr/bin/env python3
"""Strangers at a port: many connections at once, each opened again as soon as it is closed, until SIGTERM.

Usage: strangers.py HOST PORT COUNT KIND. Prints one line of JSON once every connection was begun, and another at the end:
{"open": now open, "opened": ever}. KIND says how far each goes before it falls silent:
  silent     not a byte
  trickle    one byte of a handshake a second
  handshake  a TLS ClientHello, whose answer is never answered
  settings   plaintext HTTP/2: its preface and SETTINGS, and no call
  request    half of an HTTP/1.1 request
"""

import json
import resource
import select
import signal
import socket
import ssl
import sys
import time

REFUSED_PAUSE = 0.05  # seconds until the next attempt after one that did not even connect


def client_hello():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


FIRST_WORDS = {
    "silent": b"",
    "trickle": b"\x16",
    "handshake": client_hello(),
    "settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]),
    "request": b"GET /healthz HT",
}


class Strangers:
    def __init__(self, address, count, kind):
        self.address, self.count, self.kind = address, count, kind
        self.family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.poll = select.epoll()
        self.sockets = {}
        self.opened = 0
        self.over = False

    def open_one(self):
        one = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if one.connect_ex(self.address) not in (0, 115):
            one.close()
            return
        self.sockets[one.fileno()] = one
        self.poll.register(one.fileno(), select.EPOLLOUT)
        self.opened += 1

    def close_one(self, fd):
        self.poll.unregister(fd)
        self.sockets.pop(fd).close()

    def heard(self, fd, event):
        one = self.sockets[fd]
        if event & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
            self.close_one(fd)
        elif event & select.EPOLLOUT:
            self.poll.modify(fd, select.EPOLLIN | select.EPOLLRDHUP)
            if FIRST_WORDS[self.kind]:
                one.send(FIRST_WORDS[self.kind])
        else:
            try:
                if not one.recv(65536):
                    self.close_one(fd)
            except OSError:
                self.close_one(fd)

    def run(self):
        next_byte = time.monotonic() + 1
        while not self.over:
            while len(self.sockets) < self.count and not self.over:
                before = self.opened
                self.open_one()
                if self.opened == before:
                    break
            for fd, event in self.poll.poll(REFUSED_PAUSE, 1024):
                try:
                    self.heard(fd, event)
                except OSError:
                    self.close_one(fd)
            if self.kind == "trickle" and time.monotonic() >= next_byte:
                next_byte += 1
                for one in self.sockets.values():
                    try:
                        one.send(b"\x03")
                    except OSError:
                        pass  # epoll tells of it
            if not hasattr(self, "told"):
                self.told = True
                self.tell()
        self.tell()

    def tell(self):
        print(json.dumps({"open": len(self.sockets), "opened": self.opened}), flush=True)


def main():
    host, port, count, kind = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    strangers = Strangers((host, int(port)), int(count), kind)

    def end(*_):
        strangers.over = True
    signal.signal(signal.SIGTERM, end)
    strangers.run()


if __name__ == "__main__":
    main()
