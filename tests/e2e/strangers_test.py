"""Whoever knocks at the ports: thousands of connections that are nobody's cost the run nothing.

Each storm runs for 30 s against a server with two workers in its run that may have 1,024 descriptors open, soft and hard,
or 16,384 where the storm is at the port for monitors. What fewer places mean stands in docs/bad_input.md, "Strangers at the
port for monitors", and is held too.
"""

import json
import os
import pathlib
import resource
import socket
import sys
import time
import unittest

import harness
from harness import FOREVER, timed

HERE = pathlib.Path(__file__).parent
DESCRIPTORS = 1024
STRANGERS = 2000
STORM_SECONDS = float(os.environ.get("SIGNVOTE_STORM_SECONDS", "30"))
# Of those that show the same as another one on another port.
SHORT_STORM_SECONDS = min(12.0, STORM_SECONDS)


class Weather(harness.ProcessTest):
    strangers_count = STRANGERS
    descriptors_max = DESCRIPTORS  # of the server, soft and hard
    port = "grpc"
    health_seconds_max = 1
    ready_codes = (200,)
    newcomers = True  # come in during the storm too

    def setUp(self):
        super().setUp()
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < max(self.strangers_count + 100, self.descriptors_max):
            self.skipTest("this machine does not let a process have so many sockets (ulimit -Hn)")
        self.certify("a", "b", "during", "after", "raw")

    def begin(self):
        self.start_server("--deadline", "off", rounds=FOREVER, workers_min=2,
                          prefix=["prlimit", f"--nofile={self.descriptors_max}:{self.descriptors_max}"])
        self.members = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(5)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.server.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def strangers(self, kind):
        storm = self.start(f"strangers-{kind}", [
            sys.executable, HERE / "strangers.py", "127.0.0.1", self.server.ports()[self.port], self.strangers_count, kind])
        self.wait_until("the strangers are there", lambda: storm.log().count("\n") >= 1)
        return storm

    def member_after(self, name):
        """Seconds from the start of a new worker until it is a member."""
        began = time.monotonic()
        self.start_worker(name, "--compute-ms", 20)
        self.wait_until(f"{name} is a member", lambda: any(e.get("worker") == name for e in self.events("member")), poll=0.02)
        return time.monotonic() - began

    def health_seconds(self):
        began = time.monotonic()
        self.assertEqual(harness.http_get(self.server.http, "/healthz")[0], 200)
        return time.monotonic() - began

    def weather(self, kind, seconds=STORM_SECONDS):
        """A storm, and everything that must go on in it and after it."""
        self.begin()
        before = self.descriptors()
        storm = self.strangers(kind)
        end = time.monotonic() + seconds
        cpu = self.cpu_seconds()
        rounds = len(self.rounds())
        joined = self.member_after("during") if self.newcomers else 0
        health, gaps, most = [], [], 0
        while time.monotonic() < end:
            health.append(self.health_seconds())
            most = max(most, self.descriptors())
            time.sleep(0.2)
        cpu = (self.cpu_seconds() - cpu) / (time.monotonic() - end + seconds)
        ready = harness.http_get(self.server.http, "/readyz")
        metrics = harness.http_get(self.server.http, "/metrics")[1]
        during = self.rounds()[rounds:]
        self.assertTrue(storm.alive, "the storm is over too early")
        storm.signal(15)
        self.assert_exit(storm, harness.OK)
        told = json.loads(storm.log().splitlines()[-1])
        later = self.member_after("after")
        self.wait_until("the storm's descriptors are closed",
                        lambda: self.descriptors() <= before + 2)  # the two workers that came
        gaps = [b["unix_time"] - a["unix_time"] for a, b in zip(during, during[1:])]
        print(f"{self.id()}: {told}, {len(during)} rounds, longest {max(gaps):.2f} s, member after {joined:.2f} s, afterwards "
              f"{later:.2f} s, /healthz {max(health):.2f} s, at most {most} descriptors, {before} before, {cpu:.2f} processors",
              flush=True)
        # Nobody who belongs to the run was lost.
        self.assertEqual([e for e in self.events("lost") if e["worker"] in "ab"], [])
        for name in ("a", "b"):
            self.assertNotIn("reconnect", self.members[name].log())
        self.assertLess(most, self.descriptors_max)
        self.assertIn(ready[0], self.ready_codes, ready[1])
        self.assert_in_time(joined <= 10, f"in the storm a new worker was a member after {joined:.1f} s")
        self.assert_in_time(later <= 5, f"after the storm a new worker was a member after {later:.1f} s")
        self.assert_in_time(max(health) <= self.health_seconds_max, f"/healthz took {max(health):.2f} s")
        self.assert_in_time(max(gaps) <= 5, f"a round took {max(gaps):.1f} s")
        return told, ready[1], metrics

    def assert_told(self, told, ready, metrics):
        """Of a storm that opens more than there is room for."""
        self.assertGreater(told["opened"], STRANGERS)
        self.assertIn("crowded", ready)
        turned_away = [line for line in metrics.splitlines()
                       if line.startswith("signvote_server_connections_turned_away_total ")]
        self.assertGreater(float(turned_away[0].split()[1]), 0)
        self.assertIn("some are turned away", self.server.log())
        self.assertLess(self.server.log().count("some are turned away"), 5)


class Storms(Weather):
    @timed
    def test_silent_connections_cost_the_run_nothing(self):
        self.assert_told(*self.weather("silent"))

    @timed
    def test_half_done_handshakes_cost_the_run_nothing(self):
        self.assert_told(*self.weather("handshake"))

    @timed
    def test_handshakes_that_trickle_cost_the_run_nothing(self):
        self.assert_told(*self.weather("trickle"))


class PlaintextStorms(Storms):
    insecure = True

    test_half_done_handshakes_cost_the_run_nothing = None
    test_handshakes_that_trickle_cost_the_run_nothing = None

    @timed
    def test_silent_connections_cost_the_run_nothing(self):
        self.assert_told(*self.weather("silent", SHORT_STORM_SECONDS))

    @timed
    def test_connections_without_a_call_cost_the_run_nothing(self):
        self.assert_told(*self.weather("settings"))


class HttpStorms(Weather):
    """At the port for monitors, with descriptors for as many connections as are ever heard at a time."""

    insecure = True
    strangers_count = 1000
    descriptors_max = 16384
    port = "http"

    @timed
    def test_silent_connections_keep_no_monitor_waiting(self):
        self.weather("silent", SHORT_STORM_SECONDS)

    @timed
    def test_half_requests_keep_no_monitor_waiting(self):
        self.weather("request")


class FewHttpPlaces(Weather):
    """Where 32 connections are heard at a time who comes waits for the others, and the run does not."""

    insecure = True
    strangers_count = 320
    port = "http"
    health_seconds_max = (320 / 32 - 1) * 0.5 + 2

    @timed
    def test_at_a_server_with_the_usual_descriptors(self):
        self.weather("request")

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    @timed
    def test_at_a_worker(self):
        corpus = self.folder / "corpus.txt"
        corpus.write_text("to vote is to count, to count is to vote. " * 500)
        self.start_server("--deadline", "off", rounds=FOREVER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        worker = self.start_worker("a", "--model", "micro", "--data", corpus, "--batch", 1, "--sequence", 16, "--threads", 1,
                                   "--eval", "off", "--http", address, program="signvote-worker")
        self.wait_round(3)
        storm = self.start("strangers", [sys.executable, HERE / "strangers.py", *address.split(":"), self.strangers_count, "silent"])
        self.wait_until("the strangers are there", lambda: storm.log().count("\n") >= 1)
        before, longest = len(self.rounds()), 0
        for _ in range(3):
            began = time.monotonic()
            self.assertEqual(harness.http_get(address, "/healthz", timeout=60)[0], 200)
            longest = max(longest, time.monotonic() - began)
        self.wait_round(before + 10)
        self.assertTrue(storm.alive and worker.alive)
        self.assertEqual(self.events("lost"), [])
        print(f"{self.id()}: /healthz {longest:.2f} s", flush=True)
        storm.signal(15)
        self.assert_exit(storm, harness.OK)
        self.assert_in_time(longest <= self.health_seconds_max, f"/healthz took {longest:.2f} s")


class FewDescriptors(Weather):
    """Fewer than the workers that may come and all the rest want: members go on, and newcomers, whose turn would come in
    minutes, come in after the storm."""

    descriptors_max = 256
    ready_codes = (200, 503)
    newcomers = False

    @timed
    def test_half_done_handshakes_cost_the_run_nothing(self):
        self.weather("handshake")
        self.assertIn("the limit of open descriptors is low for --workers-max", self.server.log())


if __name__ == "__main__":
    harness.run_tests()
