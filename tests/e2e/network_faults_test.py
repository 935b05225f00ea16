"""Real servers and workers over links that a proxy makes bad while they run (fault_proxy.py): what a link does costs time, or a
worker its rounds, and never a commit or a bit of anybody's replica."""

import random
import re
import socket
import time
import unittest

import harness
from fault_proxy import CUT, FLIP, FaultProxy
from harness import FOREVER, timed

# Two times ten seconds (docs/across_machines.md), and what a busy machine takes: far from what TCP would wait.
SILENCE_SECONDS_MAX = 45
FENCE_SECONDS_MAX = 8  # one second, the worker's start, its back-off and a round: far from the silence that pings notice
FIXED = ("--rule", "fixed", "--stepsize", 0.015625)


class LinkedRuns(harness.ProcessTest):
    """Every worker talks through a link of its own."""

    insecure = True

    def setUp(self):
        super().setUp()
        self.links = {}
        self.addCleanup(self.unlink)

    def start_over(self):
        super().start_over()
        self.unlink()

    def unlink(self):
        while self.links:
            self.links.popitem()[1].close()

    def serve(self, *flags, names, **options):
        """A server, and a good link for each name."""
        self.certify(*names)
        self.start_server(*flags, **options)
        host, port = self.server.address.split(":")
        for seed, name in enumerate(names):
            self.links[name] = FaultProxy((host, int(port)), seed)

    def worker_flags(self, name):
        flags = super().worker_flags(name)
        if name in self.links:
            flags[flags.index("--server") + 1] = self.links[name].address
        return flags

    def undisturbed(self, names, *flags, rounds, worker_flags):
        """Digest and losses by round of the same run over no links."""
        self.certify(*names)
        self.start_server(*flags, rounds=rounds, workers_min=len(names), name="undisturbed")
        digest = self.assert_all_end_well(self.start_in_turn(names, *worker_flags))
        return digest, self.losses()

    def start_in_turn(self, names, *flags):
        """Workers that have the same shares of the data in each run: those of the order in which they join."""
        workers = []
        for name in names:
            workers.append(self.start_worker(name, *flags))
            self.wait_until(f"{name} has joined", lambda: self.incarnation(name) == 1)
        return workers

    def losses(self):
        return [(r["loss"], r["stepsize_bits"], r["payload_hash"]) for r in self.rounds()]

    def assert_no_commit_lost(self):
        """Rounds follow each other, and no ballot is counted twice."""
        rounds = self.rounds()
        self.assertEqual([r["round"] for r in rounds], list(range(len(rounds))))
        for r in rounds:
            self.assertLessEqual(max(r["counted"], default=0), len(set(r["voters"])), r)

    def strike(self, way, count, what):
        struck = way.after(count, what)
        self.wait_until(f"{what} after {count} bytes", struck.is_set)

    def votes(self, name, since):
        return any(name in r["voters"] for r in self.rounds()[since:])

    def wait_votes(self, *names, timeout=60):
        """Until each of them has voted in a round from now on."""
        since = len(self.rounds())
        for name in names:
            self.wait_until(f"{name} votes", lambda: self.votes(name, since), timeout)

    def incarnation(self, name):
        return max((e["incarnation"] for e in self.events("joined") if e["worker"] == name), default=0)


class Delays(LinkedRuns):
    insecure = False

    def test_delay_jitter_loss_and_rates_change_nothing_but_time(self):
        names, rounds, one_way_s = ["a", "b", "c"], 15, 0.01
        flags, of_workers = ("--deadline", "off"), ("--coordinates", 100_000)
        expected = self.undisturbed(names, *flags, rounds=rounds, worker_flags=of_workers)
        self.serve(*flags, names=names, rounds=rounds, workers_min=3)
        for way in self.links["a"].ways:
            way.delay_s, way.jitter_s = one_way_s, 0.03
        for way in self.links["b"].ways:
            way.loss = 0.01
        for way in self.links["c"].ways:
            way.rate = 1e6
        digest = self.assert_all_end_well(self.start_in_turn(names, *of_workers))
        self.assertEqual((digest, self.losses()), expected)
        for name in names:
            self.assertEqual(self.report(name)["reconnects"], 0)
        # A ballot and a commit have gone over the slow link.
        self.assertGreater(min(r["seconds"] for r in self.rounds()), one_way_s)

    @timed
    def test_a_link_that_trickles_costs_its_worker_rounds_and_the_others_a_deadline(self):
        names = ["a", "b", "c"]
        self.serve("--digest-every", 5, "--observer-after", 2, names=names, rounds=FOREVER, workers_min=3)
        # 13 kB in a fifth of a second: always slow, never late.
        self.links["c"].up.rate = 60e3
        workers = self.start_workers(names, "--compute-ms", 10)
        self.wait_round(12)
        always = self.rounds()
        self.links["c"].up.rate = 1e3
        self.wait_until("c is an observer", lambda: [e for e in self.events("observer") if e["worker"] == "c"])
        self.wait_round(len(self.rounds()) + 20)
        self.links["c"].up.rate = None
        self.wait_votes("c")
        self.wait_until("c is a member again", lambda: self.worker_status("c")["role"] == "member")
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assert_in_time(all(len(r["voters"]) == 3 for r in always), "somebody was late from the beginning")


class Cuts(LinkedRuns):
    """Links are reset in the midst of messages, of one worker: nothing can be decided without it."""

    whats = (CUT,)

    def test_one_worker_that_is_cut_off_again_and_again_ends_where_it_would_have(self):
        rounds, strikes = 50, 10
        of_workers = ("--coordinates", 400_000, "--compute-ms", 5)
        expected = self.undisturbed(["a"], *FIXED, rounds=rounds, worker_flags=of_workers)
        self.serve(*FIXED, "--deadline", "off", names=["a"], rounds=rounds, workers_min=1)
        link, rng = self.links["a"], random.Random(11)
        worker = self.start_worker("a", *of_workers)
        self.wait_round(2)
        for k in range(strikes):
            # A ballot, or a verdict, has 50 kB; all else is small.
            self.strike(link.ways[k % 2], rng.randrange(1_000, 50_000), self.whats[k // 2 % len(self.whats)])
        digest = self.assert_all_end_well([worker])
        # A ballot that is there whole counts, also when the link is cut before its loss has come.
        losses = [(known if loss is None else loss, *rest)
                  for (loss, *rest), (known, *_) in zip(self.losses(), expected[1], strict=True)]
        self.assertEqual((digest, losses), expected)
        self.assert_no_commit_lost()
        report = self.report("a")
        self.assertEqual(report["reconnects"], strikes)
        self.assertEqual(report["state_transfers"], 1, "it needs no state again")

    def test_workers_that_are_cut_off_among_others_follow_and_are_counted_once(self):
        names, rng = ["a", "b", "c", "d"], random.Random(12)
        self.serve("--digest-every", 5, names=names, rounds=FOREVER, workers_min=4)
        workers = self.start_workers(names, "--coordinates", 400_000, "--compute-ms", 10)
        self.wait_round(5)
        for k in range(8):
            name = "bc"[k // 2 % 2]
            joined = self.incarnation(name)
            self.strike(self.links[name].ways[k % 2], rng.randrange(1_000, 50_000), self.whats[k % len(self.whats)])
            self.wait_until(f"{name} is back", lambda: self.incarnation(name) > joined)
        self.wait_votes(*names)
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assertEqual([self.report(name)["reconnects"] for name in names], [0, 4, 4, 0])
        self.assertEqual({self.report(name)["state_transfers"] for name in names}, {1})


class DamageUnderTls(Cuts):
    """The same with TLS, which must find every flipped bit."""

    insecure = False
    whats = (FLIP, CUT)


class StruckTransfer(LinkedRuns):
    insecure = False

    def test_a_newcomer_whose_transfer_is_struck_fetches_the_state_again(self):
        self.serve("--digest-every", 5, names=["a", "b"], rounds=FOREVER)
        flags = ("--coordinates", 1_000_000, "--compute-ms", 20)
        workers = [self.start_worker("a", *flags)]
        self.wait_round(3)
        # No connection but that of the transfer carries so much before it is there: 4 MB.
        first = self.links["b"].down.after(1_500_000, CUT)
        workers.append(self.start_worker("b", *flags))
        self.wait_until("the transfer is cut", first.is_set)
        self.strike(self.links["b"].down, 2_000_000, FLIP)
        self.wait_votes("b")
        self.end_run(*workers)
        self.assert_no_commit_lost()
        self.assertEqual(self.report("b")["state_transfers"], 1)


class Silence(LinkedRuns):
    """Links on which nothing arrives, and nobody is told."""

    def test_half_open_links_are_noticed_and_the_others_go_on_meanwhile(self):
        names = ["a", "b", "c", "deaf", "mute", "gone"]
        self.serve("--digest-every", 5, names=names, rounds=FOREVER, workers_min=6)
        workers = self.start_workers(names, "--coordinates", 20_000, "--compute-ms", 20)
        self.wait_round(5)
        began = time.monotonic()
        self.links["deaf"].down.forget()
        self.links["mute"].up.forget()
        for way in self.links["gone"].ways:
            way.forget()
        silent = {"deaf", "mute", "gone"}
        self.wait_until("nobody waits for them",
                        lambda: silent <= {e["worker"] for e in self.events("observer")})
        meanwhile = len(self.rounds())
        self.wait_round(meanwhile + 20)
        self.assertEqual({name for r in self.rounds()[meanwhile:meanwhile + 20] for name in r["voters"]}, {"a", "b", "c"})
        left = SILENCE_SECONDS_MAX - (time.monotonic() - began)
        self.wait_until("each side has noticed", lambda: all(self.incarnation(name) > 1 for name in silent), max(left, 1))
        for name in silent:
            self.assertIn("lost the server", workers[name].log())
            self.assertTrue([e for e in self.events("lost") if e["worker"] == name], f"{name} in the event log")
        self.wait_votes(*silent)
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assertEqual({name for name in names if self.report(name)["reconnects"] > 0}, silent)

    @timed
    def test_a_worker_that_comes_back_is_let_in_beside_its_half_open_link(self):
        names = ["a", "b"]
        self.serve("--digest-every", 5, names=names, rounds=FOREVER, workers_min=2)
        workers = self.start_workers(names, "--coordinates", 20_000, "--compute-ms", 20)
        self.wait_round(5)
        for way in self.links["b"].ways:
            way.forget()
        workers["b"].kill()
        self.assertTrue(self.worker_status("b")["connected"], "the server was told nothing")
        began = time.monotonic()
        workers["b"] = self.start_worker("b", "--coordinates", 20_000, "--compute-ms", 20)
        self.wait_until("b is let in", lambda: self.incarnation("b") == 2)
        took = time.monotonic() - began
        self.wait_votes("b")
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assert_in_time(took <= FENCE_SECONDS_MAX, f"let in after {took:.1f} s")

    def test_a_partition_of_all_workers_is_waited_out_by_name(self):
        names = ["a", "b", "c"]
        self.serve("--digest-every", 5, names=names, rounds=FOREVER, workers_min=3)
        workers = self.start_workers(names, "--compute-ms", 20)
        self.wait_round(5)
        ways = [way for link in self.links.values() for way in link.ways]
        for way in ways:
            way.hold()
        said = self.wait_until("the server says whom it waits for", lambda: re.search(
            r"waits past its deadline: the quorum is 2 of 3 members; silent: (.*)", self.server.log()))
        self.assertEqual(sorted(said[1].split(", ")), names)
        stands = len(self.rounds())
        self.assertEqual(self.status()["phase"], "round_open")
        for way in ways:
            way.release()
        self.wait_round(stands + 10)
        self.assertEqual([self.incarnation(name) for name in names], [1, 1, 1])

        # The same, and both ends are told.
        for way in ways:
            way.hold()
        for link in self.links.values():
            link.cut()
        self.wait_until("the server waits for workers", lambda: self.status()["phase"] == "waiting_for_workers")
        self.assertIn("waits for workers: too few are ready", self.server.log())
        stands = len(self.rounds())
        for way in ways:
            way.release()
        self.wait_round(stands + 10)
        self.wait_votes(*names)
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assertEqual([self.report(name)["state_transfers"] for name in names], [1, 1, 1])

    def test_a_ballot_that_was_held_up_comes_too_late_and_changes_nothing(self):
        names = ["a", "b", "c"]
        self.serve("--digest-every", 1, names=names, rounds=FOREVER, workers_min=3)
        workers = self.start_workers(names, "--coordinates", 400_000, "--compute-ms", 20)
        self.wait_round(5)
        self.links["c"].up.hold()
        held = len(self.rounds())
        self.wait_until("a round goes on without c",
                        lambda: any("c" not in r["voters"] for r in self.rounds()[held:]))
        self.links["c"].up.release()
        self.wait_until("its ballot is late", lambda: self.worker_status("c")["late_chunks"] > 0)
        self.wait_votes("c")
        self.end_run(*workers.values())
        self.assert_no_commit_lost()
        self.assertEqual(self.incarnation("c"), 1)


class Proxy(unittest.TestCase):
    """The links themselves."""

    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.link = FaultProxy(self.listener.getsockname(), 5)
        self.addCleanup(self.link.close)
        host, port = self.link.address.split(":")
        self.near = socket.create_connection((host, int(port)), 30)
        self.addCleanup(self.near.close)
        self.far, _ = self.listener.accept()
        self.far.settimeout(30)
        self.addCleanup(self.far.close)

    @staticmethod
    def take(peer, count):
        data = b""
        while len(data) < count:
            data += peer.recv(count - len(data))
        return data

    def test_bytes_arrive_in_order_later_and_no_faster_than_their_rate(self):
        way = self.link.up
        way.delay_s, way.jitter_s, way.rate, way.loss = 0.02, 0.02, 1e6, 0.01
        data = random.Random(1).randbytes(200_000)
        began = time.monotonic()
        self.near.sendall(data)
        self.assertEqual(self.take(self.far, len(data)), data)
        self.assertGreaterEqual(time.monotonic() - began, 0.2)

    def test_what_is_held_arrives_after_the_release_and_ends_wait_likewise(self):
        self.link.up.hold()
        self.near.sendall(b"ballot")
        self.near.shutdown(socket.SHUT_WR)
        self.far.sendall(b"verdict")  # the other way
        self.assertEqual(self.take(self.near, 7), b"verdict")
        self.far.setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.far.recv(1)
        self.far.settimeout(30)
        self.link.up.release()
        self.assertEqual(self.take(self.far, 6), b"ballot")
        self.assertEqual(self.far.recv(1), b"")

    def test_one_bit_is_flipped_and_then_both_ends_are_reset_where_they_should(self):
        flipped, cut = self.link.up.after(10, FLIP), self.link.up.after(20, CUT)
        self.near.sendall(bytes(30))
        self.assertEqual(self.take(self.far, 20), bytes(10) + b"\x10" + bytes(9))
        for peer in (self.far, self.near):
            with self.assertRaises(ConnectionResetError):
                peer.recv(1)
        self.assertTrue(flipped.is_set() and cut.is_set())

    def test_a_forgotten_connection_carries_nothing_while_a_new_one_does(self):
        self.link.up.forget()
        self.near.sendall(b"lost")
        host, port = self.link.address.split(":")
        with socket.create_connection((host, int(port)), 30) as near:
            far, _ = self.listener.accept()
            with far:
                near.sendall(b"new")
                self.assertEqual(self.take(far, 3), b"new")
        self.near.close()
        self.far.setblocking(False)
        with self.assertRaises(BlockingIOError):
            self.far.recv(1)


if __name__ == "__main__":
    harness.run_tests()
