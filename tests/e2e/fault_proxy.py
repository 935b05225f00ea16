"""A link that a test makes bad while real processes talk over it: a TCP proxy between one worker and the server.

Each way of it has its own faults, which may change at any time:

  delay_s, jitter_s   every piece arrives so much later, and up to jitter_s more; order is kept
  rate                bytes a second
  loss                probability that a segment is lost, which over TCP is a wait of 0.2 s, and twice as long when it is lost again
  hold(), release()   nothing arrives, nobody is told; what was sent meanwhile arrives when it is released, as TCP sends it again
  forget()            the connections of this moment are held for ever (half-open); others are not
  after(bytes, what)  once one connection has carried so many bytes more: CUT (reset both ends) or FLIP (one bit of the next byte)

cut() resets every connection at once. Ends of connections travel as data do: held, and in order.
"""

import asyncio
import random
import socket
import struct
import threading

CUT, FLIP = "cut", "flip"
SEGMENT_BYTES = 1448
RETRANSMISSION_S = 0.2
PIECE_BYTES = 32 << 10
PIECES_QUEUED_MAX = 32  # then the sender's own buffers fill
RATE_GRAIN_S = 0.02


class _After:
    """What happens behind so many bytes of one connection."""

    def __init__(self, count, what):
        self.count, self.what = count, what
        self.struck = threading.Event()
        self.carried = {}  # by connection


class Way:
    """One direction of a FaultProxy. Attributes may be set by any thread."""

    def __init__(self, loop, rng):
        self.delay_s = self.jitter_s = self.loss = 0.0
        self.rate = None
        self.bytes = 0  # carried so far
        self._loop, self._rng = loop, rng
        self._passable = asyncio.Event()
        self._passable.set()
        self._forgotten = set()  # connections
        self._connections = None  # the proxy's set
        self._afters = []

    def hold(self):
        self._on_loop(self._passable.clear)

    def release(self):
        self._on_loop(self._passable.set)

    def forget(self):
        self._on_loop(lambda: self._forgotten.update(self._connections))

    def after(self, count, what):
        """Returns a threading.Event that is set once it has happened."""
        after = _After(count, what)
        self._on_loop(lambda: self._afters.append(after))
        return after.struck

    def _on_loop(self, action):
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (action(), done.set()))
        done.wait()

    # ---- on the proxy's thread
    def due(self):
        return self._loop.time() + self.delay_s + self._rng.uniform(0, self.jitter_s)

    async def pass_gate(self, connection):
        """Returns when something of this connection may arrive, for a forgotten one never."""
        while True:
            await self._passable.wait()
            if connection not in self._forgotten:
                return
            await asyncio.Event().wait()

    async def lose(self, count):
        """Waits as long as the segments of so many bytes need to be sent again."""
        for _ in range(-(-count // SEGMENT_BYTES)):
            again = RETRANSMISSION_S
            while self.loss > 0 and self._rng.random() < self.loss:
                await asyncio.sleep(again)
                again *= 2

    def grain(self):
        """Bytes that may arrive at a time."""
        return PIECE_BYTES if self.rate is None else max(1, min(PIECE_BYTES, int(self.rate * RATE_GRAIN_S)))

    def room(self, connection, count):
        """How many of `count` bytes go before the next thing happens, and that; None: nothing does."""
        first = None
        for after in self._afters:
            left = after.count - after.carried.get(connection, 0)
            if left < count:
                count, first = left, after
        return count, first

    def carried(self, connection, count):
        self.bytes += count
        for after in self._afters:
            after.carried[connection] = after.carried.get(connection, 0) + count

    def strike(self, after):
        self._afters.remove(after)
        after.struck.set()


class _Cut(Exception):
    pass


def _reset(peer):
    """Closes with RST, whatever is queued."""
    try:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    peer.close()


class _Connection:
    """One connection of a worker, and that to the server which belongs to it."""

    def __init__(self, proxy, client):
        self.proxy, self.client, self.server = proxy, client, None
        self.reset = False

    async def run(self):
        loop, proxy = asyncio.get_running_loop(), self.proxy
        try:
            await proxy.up.pass_gate(self)
            self.server = socket.socket()
            self.server.setblocking(False)
            self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(self.server, proxy.target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(proxy.up, self.client, self.server))
                both.create_task(self._carry(proxy.down, self.server, self.client))
        except* (_Cut, ConnectionError):
            self.reset = True

    def close(self):
        for peer in (self.client, self.server):
            if peer is not None and peer.fileno() >= 0:
                _reset(peer) if self.reset else peer.close()

    async def _carry(self, way, source, sink):
        queue = asyncio.Queue(PIECES_QUEUED_MAX)
        reader = asyncio.create_task(self._read(way, source, queue))
        try:
            await self._write(way, queue, sink)
        finally:
            reader.cancel()

    async def _read(self, way, source, queue):
        loop, due = asyncio.get_running_loop(), 0.0
        while True:
            try:
                data = await loop.sock_recv(source, PIECE_BYTES)
            except ConnectionError:
                data = None  # reset
            due = max(due, way.due())
            await queue.put((due, data))
            if not data:
                return

    async def _write(self, way, queue, sink):
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                await way.pass_gate(self)
                if data is None:
                    raise _Cut
                try:
                    sink.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # the other end is gone too
                return
            await way.lose(len(data))
            try:
                await self._send(way, memoryview(bytearray(data)), sink)
            except ConnectionError:
                return  # the other way hears of it

    async def _send(self, way, data, sink):
        loop = asyncio.get_running_loop()
        while data:
            await way.pass_gate(self)
            count, after = way.room(self, min(len(data), way.grain()))
            if count == 0:
                way.strike(after)
                if after.what == CUT:
                    raise _Cut
                data[0] ^= 0x10
                continue
            began = loop.time()
            await loop.sock_sendall(sink, data[:count])
            way.carried(self, count)
            if way.rate is not None:
                await asyncio.sleep(began + count / way.rate - loop.time())
            data = data[count:]


class FaultProxy:
    """A context manager. `target`: (host, port) of the server. Everything random comes from `seed`."""

    def __init__(self, target, seed=0):
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._loop = asyncio.new_event_loop()
        rng = random.Random(seed)
        self.up, self.down = Way(self._loop, rng), Way(self._loop, rng)  # to the server, to the worker
        self._connections = {}  # and their tasks
        self.up._connections = self.down._connections = self._connections
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._accept(),), daemon=True)
        self._closed = asyncio.Event()
        self._thread.start()

    @property
    def address(self):
        return "127.0.0.1:%d" % self._listener.getsockname()[1]

    @property
    def ways(self):
        return self.up, self.down

    def cut(self):
        def each():
            for connection, task in self._connections.items():
                connection.reset = True
                task.cancel()
        self.up._on_loop(each)

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()
            self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def _accept(self):
        accepting = asyncio.create_task(self._accept_all())
        await self._closed.wait()
        tasks = [accepting, *self._connections.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept_all(self):
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, client)
            task = asyncio.create_task(self._serve(connection))
            self._connections[connection] = task

    async def _serve(self, connection):
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            for way in self.ways:
                way._forgotten.discard(connection)
            # Only now: nothing of the loop waits for the sockets any more.
            connection.close()
