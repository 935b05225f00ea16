#!/usr/bin/env python3
"""Time of a round over shaped links: the real server and n workers on hosts of their own (network namespaces), their links
held to a rate by tc's token bucket in both directions; synthetic ballots, no model.

A round is timed from the first byte of a ballot to the commit at all workers, without apply. Its bytes are those that the
kernel counts on each worker's socket. Beside it:

  sum     (bytes up + bytes down) / rate: nothing overlaps; the gate is 1.15 of it
  duplex  max(up, down) / rate: verdicts stream back while later chunks go up
  tcp     bare TCP connections moving the same bytes both ways at once over the same links, in the same run
  gloo    with --gloo-python, for plaintext runs: gloo's fp32 all-reduce of the same d among the workers, whose links all have
          the rate (it needs no server)
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_run import ROOT, SERVER, BenchRun, Report, exit_status  # noqa: E402 (it finds the tests' modules)
import harness  # noqa: E402
import hosts  # noqa: E402

TCP_PORT = 7071
GLOO_PORT = 7072
GLOO_REPETITIONS = 3
GLOO_SECONDS_MAX = 600
COORDINATES = 25_000_000
GATE = 1.15
WARM_UP_ROUNDS = 4  # TCP's windows open, deadlines learn
BARE_REPETITIONS = 3


class Run(BenchRun):
    """A server and its workers, run until a number of rounds were timed; what the workers saw of each round."""

    def __init__(self, network, folder, workers, shaped, mbit, coordinates, tls, timed_rounds, server_flags=(),
                 gloo_python=None):
        """Links of the hosts `shaped` get their rate once everybody has joined: fetching the first replica is not timed."""
        super().__init__(network, folder, tls)
        self.names, self.shaped, self.mbit = workers, shaped, mbit
        self.coordinates, self.timed_rounds = coordinates, timed_rounds
        with self:
            self._run(server_flags)
            self._bare()
            self.gloo_s = self._gloo(gloo_python) if gloo_python is not None else []

    def _run(self, server_flags):
        if self.tls:
            self.certify(self.names)
        self.serve("--workers-min", len(self.names), "--digest-every", 0, *server_flags)
        for name in self.names:
            self.attach(name, self.coordinates, "--round-log", self.folder / f"{name}.jsonl")
        self.wait_members()
        for host in self.shaped:
            self.network[host].shape(self.mbit)
        begin = WARM_UP_ROUNDS + len(self.rounds())
        self.wait_rounds(begin + self.timed_rounds)
        self.reports = self.finish()
        lines = {w: {r["round"]: r for r in harness.ProcessTest.lines(self.folder / f"{w}.jsonl")} for w in self.names}
        self.round_s, self.gap_s = [], []
        previous = None
        for number in range(begin, begin + self.timed_rounds):
            seen = [lines[w][number] for w in self.names]
            first = min(r["first_chunk_ns"] for r in seen)
            committed = max(r["committed_ns"] for r in seen)
            self.round_s.append((committed - first) * 1e-9)
            if previous is not None:
                self.gap_s.append((committed - previous) * 1e-9)
            previous = committed

        def per_round(key):
            last = begin + self.timed_rounds - 1
            return {w: (lines[w][last][key] - lines[w][begin - 1][key]) / self.timed_rounds for w in self.names}
        self.up_bytes, self.down_bytes = per_round("sent_bytes"), per_round("received_bytes")

    def _bare(self):
        """Seconds in which bare TCP moves the same bytes both ways at once, all workers at a time."""
        helper = [sys.executable, pathlib.Path(__file__).resolve(), "--bare"]
        up, down = (round(max(b.values())) for b in (self.up_bytes, self.down_bytes))
        server = self.start(SERVER, "bare-server", *helper, "serve", len(self.names), up, down)
        clients = [self.start(w, f"bare-{w}", *helper, "connect", len(self.names), up, down) for w in self.names]
        for process in [*clients, server]:
            self.end(process, 300)
        times = [json.loads(c.log()) for c in clients]
        self.tcp_s = [max(t[k][1] for t in times) - min(t[k][0] for t in times) for k in range(1, BARE_REPETITIONS + 1)]

    def _gloo(self, python):
        """Seconds of gloo's all-reduces, from the first worker's start to the last one's end."""
        for host in self.names:
            self.network[host].shape(self.mbit)
        ranks = []
        for rank, name in enumerate(self.names):
            ranks.append(self.start(
                name, f"gloo-{name}", "env", "GLOO_SOCKET_IFNAME=eth0", python, ROOT / "tests/bench/gloo_allreduce.py", "--d",
                self.coordinates, "--workers", len(self.names), "--rank", rank, "--master",
                f"{self.network[self.names[0]].address}:{GLOO_PORT}", "--repetitions", GLOO_REPETITIONS))
        for process in ranks:
            self.end(process, GLOO_SECONDS_MAX)
        times = [json.loads(process.log().splitlines()[-1]) for process in ranks]
        return [max(t[k][1] for t in times) - min(t[k][0] for t in times) for k in range(GLOO_REPETITIONS)]

    # ---- figures
    def sum_s(self, links=1):
        """(up + down) / rate of the worker that moves most; `links`: workers that share the shaped link."""
        return links * max(self.up_bytes[w] + self.down_bytes[w] for w in self.names) * 8 / (self.mbit * 1e6)

    def duplex_s(self, links=1):
        return links * max(max(self.up_bytes[w], self.down_bytes[w]) for w in self.names) * 8 / (self.mbit * 1e6)

    def missed(self):
        """Ballots that a round went on without."""
        return sum(len(self.names) - len(r["voters"]) for r in self.rounds())


def bare(role, connections, up, down):
    """The helper's process: `connections` streams of TCP, each moving `up` bytes to the server and `down` bytes back."""
    import socket
    import threading
    data = bytes(max(up, down))

    def exchange(peer, send, receive):
        sender = threading.Thread(target=peer.sendall, args=(memoryview(data)[:send],))
        sender.start()
        left, place = receive, bytearray(1 << 20)
        while left > 0:
            got = peer.recv_into(place, min(left, len(place)))
            if got == 0:
                raise SystemExit("the other side hung up")
            left -= got
        sender.join()

    if role == "serve":
        with socket.create_server(("0.0.0.0", TCP_PORT)) as listener:
            peers = [listener.accept()[0] for _ in range(connections)]
        for _ in range(BARE_REPETITIONS + 1):
            for peer in peers:
                peer.sendall(b"g")  # together
            threads = [threading.Thread(target=exchange, args=(p, down, up)) for p in peers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for peer in peers:
                peer.recv(1)
        return
    deadline = time.monotonic() + 20
    while True:
        try:
            peer = socket.create_connection((SERVER, TCP_PORT), timeout=60)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    times = []
    for _ in range(BARE_REPETITIONS + 1):
        peer.recv(1)
        begin = time.monotonic()
        exchange(peer, up, down)
        times.append((begin, time.monotonic()))
        peer.sendall(b"d")
    print(json.dumps(times))


class LinkReport(Report):
    def run(self, name, run, links, gate):
        self.add(f"{name}_round", "s", run.round_s)
        self.add(f"{name}_round_to_round", "s", run.gap_s)
        self.add(f"{name}_up_bytes", "bytes", list(run.up_bytes.values()))
        self.add(f"{name}_down_bytes", "bytes", list(run.down_bytes.values()))
        self.add(f"{name}_ratio_to_sum", "ratio", [s / run.sum_s(links) for s in run.round_s], gate)
        self.add(f"{name}_ratio_to_duplex", "ratio", [s / run.duplex_s(links) for s in run.round_s])
        self.add(f"{name}_tcp", "s", run.tcp_s)
        self.add(f"{name}_ratio_to_tcp", "ratio", [s / statistics.median(run.tcp_s) for s in run.round_s])
        if run.gloo_s:
            self.add(f"{name}_gloo", "s", run.gloo_s)
            self.add(f"{name}_ratio_to_gloo", "ratio", [statistics.median(run.gloo_s) / s for s in run.round_s])
        self.add(f"{name}_missed_ballots", "", [run.missed()], 0)


def main():
    if sys.argv[1:2] == ["--bare"]:
        return bare(sys.argv[2], *[int(a) for a in sys.argv[3:6]])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure and line")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate is missed")
    parser.add_argument("--repetitions", type=int, default=20, help="timed rounds per figure [20]")
    parser.add_argument("--d", type=int, default=COORDINATES, help="coordinates [25000000]")
    parser.add_argument("--server-flags", default="", help="further flags of signvote-server")
    parser.add_argument("--gloo-python", help="a Python that has torch, for gloo's all-reduce [none: no gloo]")
    parser.add_argument("--only", help="only the runs whose names hold this text")
    options = parser.parse_args()
    hosts.prepare()
    if options.quick:
        options.d, options.repetitions = min(options.d, 2_000_000), min(options.repetitions, 3)
    report = LinkReport(options.json)
    # name, workers, whose links are shaped, Mbit/s, TLS, gate on the ratio to the sum.
    runs = [("workers_links_100mbit_n2", 2, "workers", 100, False, GATE),
            ("workers_links_100mbit_n2_mtls", 2, "workers", 100, True, GATE),
            ("server_link_100mbit_n4", 4, "server", 100, False, None),
            ("server_link_100mbit_n4_mtls", 4, "server", 100, True, None),
            ("server_link_1000mbit_n4", 4, "server", 1000, False, None),
            ("server_link_1000mbit_n4_mtls", 4, "server", 1000, True, None)]

    def measure_all(folder):
        for name, count, where, mbit, tls, gate in runs:
            if options.only and options.only not in name:
                continue
            workers = [f"w{k}" for k in range(1, count + 1)]
            with hosts.Network(SERVER, *workers) as network:
                shaped = workers if where == "workers" else [SERVER]
                run = Run(network, folder / name, workers, shaped, mbit, options.d, tls, options.repetitions,
                          options.server_flags.split(), None if tls else options.gloo_python)
                report.run(name, run, 1 if where == "workers" else count, None if options.quick else gate)

    return exit_status("link", report, options.check, measure_all)


if __name__ == "__main__":
    sys.exit(main())
