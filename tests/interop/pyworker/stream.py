"""One Session call: messages up through a queue, messages down into another, pings answered by the reader."""

import queue
import threading

import grpc

from .messages import training

DRAIN = object()  # stands in the inbox for the operator's Ctrl-C


class Ended(Exception):
    """The stream ended with a gRPC status."""

    def __init__(self, code, text):
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


class Silent(Exception):
    """No message in time."""


class Stream:
    """Threads: send() from any; receive() from one. close() always."""

    def __init__(self, stub):
        self._outbox = queue.SimpleQueue()
        self.inbox = queue.SimpleQueue()
        self._call = stub.Session(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, name="session reader", daemon=True)
        self._reader.start()

    def send(self, **message):
        """send(ready=Ready(...)): one WorkerMessage."""
        self._outbox.put(training.WorkerMessage(**message))

    def receive(self, timeout):
        """(kind, message) or (DRAIN, None). Ended when the stream is over; Silent after `timeout` seconds."""
        try:
            item = self.inbox.get(timeout=timeout)
        except queue.Empty:
            raise Silent(f"no message for {timeout:.0f} s") from None
        if isinstance(item, Ended):
            raise item
        if item is DRAIN:
            return DRAIN, None
        kind = item.WhichOneof("message")
        return kind, getattr(item, kind) if kind else None

    def close(self):
        self._outbox.put(None)
        self._call.cancel()
        self._reader.join(10)

    def _read(self):
        try:
            for message in self._call:
                if message.WhichOneof("message") == "ping":
                    self.send(pong=training.Pong(nonce=message.ping.nonce))
                else:
                    self.inbox.put(message)
            self.inbox.put(Ended(grpc.StatusCode.OK, self._call.details() or ""))
        except grpc.RpcError as error:
            self.inbox.put(Ended(error.code(), error.details() or ""))
