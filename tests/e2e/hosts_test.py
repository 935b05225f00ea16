"""A run over several machines (network namespaces, hosts.py): names, certificates, metrics, a cut cable, slow links."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import harness
import hosts

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))

import link_bench  # noqa: E402

SERVER = "train.example.net"
SILENCE_SECONDS_MAX = 23  # two times 10 s, and what the machine takes
ROUND_GATE = 1.15  # of (bytes up + bytes down) / rate


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class ThreeHosts(hosts.HostsTest):
    def setUp(self):
        super().setUp()
        self.network = self.connect(SERVER, "alice-pc", "bob-pc")
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(100) for b in range(20)))
        self.round_log, self.event_log = self.folder / "rounds.jsonl", self.folder / "events.jsonl"

    def certify_names(self, *workers):
        """Certificates on the server's host for its name; each worker's folder is all that is copied to its machine."""
        names = [word for w in workers for word in ("--worker", w)]
        code, out, err = self.network[SERVER].run(harness.BIN / "signvote", "certs", self.tls, "--server-name", SERVER, *names)
        self.assertEqual(code, harness.OK, out + err)
        for worker in workers:
            shutil.copytree(self.tls / "workers" / worker, self.folder / f"{worker}-pc" / worker)

    def serve(self, *flags):
        host = self.network[SERVER]
        self.server = self.start_on(host, "server", [
            harness.BIN / "signvote-server", "--listen", "0.0.0.0:7070", "--http", f"{host.address}:9090", "--tls-ca",
            self.tls / "ca.crt", "--tls-certificate", self.tls / "server.crt", "--tls-key", self.tls / "server.key",
            "--tokens", self.tls / "tokens", "--seed", 7, "--round-log", self.round_log, "--event-log", self.event_log,
            *flags])

    def attach(self, worker, *flags, server=SERVER):
        host = self.network[f"{worker}-pc"]
        return self.start_on(host, worker, [
            harness.BIN / "signvote-worker", "--server", f"{server}:7070", "--tls-dir", self.folder / host.name / worker,
            "--model", "micro", "--data", self.corpus, "--batch", 2, "--sequence", 32, "--threads", 1, "--http",
            f"{host.address}:9091", "--report", self.folder / f"{worker}.report.json", *flags])

    def ctl_from(self, host, *arguments):
        return self.network[host].run(harness.BIN / "signvote", "--server", f"{SERVER}:7070", "--tls-dir", self.tls, *arguments)

    def status_from(self, host):
        code, out, err = self.ctl_from(host, "status", "--json")
        self.assertEqual(code, harness.OK, err)
        return json.loads(out)

    def role(self, worker):
        found = [w for w in self.status_from("bob-pc")["workers"] if w["name"] == worker]
        return found[0]["role"] if found and found[0]["connected"] else None

    def incarnation(self, worker):
        found = [w for w in self.status_from("bob-pc")["workers"] if w["name"] == worker and w["connected"]]
        return found[0]["incarnation"] if found else None

    def votes_from(self, worker, round_number):
        return any(worker in r["voters"] for r in self.rounds()[round_number:])

    def value(self, host, url, metric):
        status, text = self.network[host].get(url)
        self.assertEqual(status, 200, url)
        found = re.search(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        self.assertTrue(found, f"{url} has no {metric}")
        return float(found.group(1))

    def test_workers_join_by_name_come_late_and_survive_a_cut_cable(self):
        self.certify_names("alice", "bob", "carol")
        self.serve("--workers-min", 2, "--rounds", 1_000_000)
        workers = {"alice": self.attach("alice"), "bob": self.attach("bob")}
        self.wait_round(5)

        # Scraped and asked from other machines than their own.
        self.assertEqual(self.value("alice-pc", f"http://{SERVER}:9090/metrics", "signvote_server_members"), 2)
        self.assertGreaterEqual(self.value("bob-pc", f"http://{SERVER}:9090/metrics", "signvote_server_round"), 5)
        self.assertEqual(self.value(SERVER, "http://alice-pc:9091/metrics", "signvote_worker_connected"), 1)
        self.assertGreaterEqual(self.value("bob-pc", "http://alice-pc:9091/metrics", "signvote_worker_round"), 4)
        code, out, err = self.ctl_from("bob-pc", "status")
        self.assertEqual(code, harness.OK, err)
        self.assertIn("alice", out)

        # A third machine comes later.
        self.network.add("carol-pc")
        late = len(self.rounds())
        workers["carol"] = self.attach("carol")
        self.wait_until("carol votes", lambda: self.votes_from("carol", late))

        # A cable is pulled for as long as it takes until nobody waits for that machine any more.
        self.network["bob-pc"].link("down")
        self.wait_until("bob is an observer", lambda: any(e["worker"] == "bob" for e in self.events("observer")))
        cut = len(self.rounds())
        self.wait_round(cut + 5)
        self.assertFalse(any("bob" in r["voters"] for r in self.rounds()[cut:]), "nothing comes through a pulled cable")
        self.network["bob-pc"].link("up")
        back = len(self.rounds())
        self.wait_until("bob votes again", lambda: self.votes_from("bob", back))
        self.wait_until("bob is a member again", lambda: self.role("bob") == "member")
        self.wait_until("all three vote", lambda: any(len(r["voters"]) == 3 for r in self.rounds()[back:]))

        # The operator ends it: no further round, everybody leaves with what they hold.
        self.assertEqual(self.ctl_from("carol-pc", "pause")[0], harness.OK)
        self.wait_until("the run is paused", lambda: self.status_from("carol-pc")["phase"] == "paused")

        # Nothing is under way: by its pings a worker learns within 20 s that its server is out of reach.
        self.network["carol-pc"].link("down")
        self.wait_until("carol misses the server", lambda: "lost the server" in workers["carol"].log(), SILENCE_SECONDS_MAX)
        self.network["carol-pc"].link("up")
        self.wait_until("carol is back", lambda: self.incarnation("carol") == 2)

        for name, worker in workers.items():
            self.assertEqual(self.ctl_from("alice-pc", "drain", name)[0], harness.OK)
            self.assert_exit(worker, harness.OK)
        self.server.signal(signal.SIGTERM)
        self.wait_end(30)
        reports = [self.report(name) for name in workers]
        self.assertEqual({r["next_round"] for r in reports}, {len(self.rounds())})
        self.assertEqual(len({r["digest"] for r in reports}), 1, "replicas differ")
        self.assertEqual(self.report("alice")["reconnects"], 0, "the others noticed nothing")
        self.assertEqual(self.report("carol")["reconnects"], 1)

    def test_a_server_is_known_by_its_certificates_name_only(self):
        self.certify_names("alice")
        self.serve("--workers-min", 1, "--rounds", 3)
        address = self.network[SERVER].address
        stranger = self.attach("alice", "--connect-timeout", 30, server=address)
        self.assert_exit(stranger, harness.REFUSED)
        self.assertIn("does not name this address", stranger.log())
        self.assert_all_end_well([self.attach("alice")])


class ShapedLink(hosts.HostsTest):
    """Workers' links at 100 Mbit/s in both directions, d = 25,000,000."""

    def check(self, tls, shaped=("w1", "w2")):
        workers = ["w1", "w2"]
        network = self.connect(link_bench.SERVER, *workers)
        folder = pathlib.Path(tempfile.mkdtemp(prefix="run.", dir=self.folder))
        run = link_bench.Run(network, folder / "run", workers, list(shaped), 100, link_bench.COORDINATES, tls, 8)
        report = link_bench.LinkReport(as_json=False)
        report.run("mtls" if tls else "plaintext", run, 1, ROUND_GATE)
        self.assertFalse([e for e in run.events("lost")])
        self.assertEqual({r["reconnects"] for r in run.reports.values()}, {0})
        self.assertEqual(len({r["digest"] for r in run.reports.values()}), 1, "replicas differ")
        for moved in (*run.up_bytes.values(), *run.down_bytes.values()):
            self.assertLess(abs(moved / (link_bench.COORDINATES / 8) - 1), 0.02, "bytes per round and direction")
        self.assertGreater(min(run.round_s), 0.98 * run.duplex_s(), "the links are shaped")
        self.assert_in_time(run.missed() == 0, "a ballot came too late")
        self.assert_in_time(not report.missed, "see the figures above")

    @harness.timed
    def test_a_round_takes_no_longer_than_its_bytes(self):
        self.check(tls=False)

    @harness.timed
    def test_nor_does_it_with_mtls(self):
        self.check(tls=True)

    @harness.timed
    def test_nor_where_one_of_the_links_is_slow(self):
        self.check(tls=True, shaped=["w1"])


class Hosts(hosts.HostsTest):
    """The harness itself."""

    def test_hosts_reach_each_other_by_name_until_a_cable_is_pulled(self):
        network = self.connect("a", "b")
        self.start_on(network["b"], "web", [sys.executable, "-m", "http.server", "--directory", self.folder, "8000"])
        def answers():
            try:
                return network["a"].get("http://b:8000/", timeout=1)[0] == 200
            except AssertionError:
                return False
        self.wait_until("b answers", answers)
        network["b"].link("down")
        self.assertFalse(answers())
        network["b"].link("up")
        self.wait_until("b answers again", answers)

    def test_nothing_outlives_the_program_that_made_the_hosts(self):
        for number, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            program = ("import hosts, sys, time\n"
                       "class Test(hosts.HostsTest):\n"
                       "    def test(self):\n"
                       "        a = self.connect('a')['a']\n"
                       "        child = self.start_on(a, 'child', ['sh', '-c', 'echo runs; exec sleep 300'])\n"
                       "        self.wait_until('it runs', lambda: 'runs' in child.log())\n"
                       "        print(a.pid, child.pid, self.folder, self._networks[0]._folder, flush=True)\n"
                       "        time.sleep(60)\n"
                       "hosts.main()\n")
            process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                       text=True, cwd=pathlib.Path(__file__).parent)
            with process.stdout:
                *pids, folder, names = process.stdout.readline().split()
            process.send_signal(number)
            self.assertEqual(process.wait(10), expected)
            self.wait_until("all of it is gone", lambda: not any(self.runs(pid) for pid in pids), timeout=5)
            for path in (folder, names):
                self.assertEqual(pathlib.Path(path).exists(), number == signal.SIGKILL, path)
                shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def runs(pid):
        try:
            return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False


if __name__ == "__main__":
    hosts.main()
