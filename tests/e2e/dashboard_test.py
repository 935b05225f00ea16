"""The dashboard and the alerts on a real run, through a real Prometheus.

One server and three workers train; a fourth attaches and one of the three is killed. Prometheus scrapes them by the shipped
configuration: only the times are shorter (scrapes, evaluations, how long an alert waits) and the targets come through the
target files. Then every panel's query must answer with finite numbers, every alert must have something to look at, and those
that fire must be those of the killed worker.

SIGNVOTE_DASHBOARD_SECONDS sets how long the run is watched, SIGNVOTE_DASHBOARD_ROUNDS its number of rounds (more than it gets
to); SIGNVOTE_DASHBOARD_RESULTS names a file that gets every panel's answer (dashboards/render.py draws it).
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dashboards"))

import build  # noqa: E402
import definition  # noqa: E402

WATCH_SECONDS = float(os.environ.get("SIGNVOTE_DASHBOARD_SECONDS", "10"))
ROUNDS = int(os.environ.get("SIGNVOTE_DASHBOARD_ROUNDS", "1000000"))  # more than it gets to
RESULTS = os.environ.get("SIGNVOTE_DASHBOARD_RESULTS")
SCRAPE, ALERT_WAIT = "500ms", "2s"
NOT_OF_THIS_RULE = {"Lean"}  # ALIAS has no z
SETTLE_SECONDS = 3  # longer than an alert waits
STEP_SECONDS = max(0.5, WATCH_SECONDS / 300)
# Grafana's least: four scrapes. Twice that, because this machine is also the one that trains.
RATE_SECONDS = max(4, math.ceil(4 * STEP_SECONDS))
SAVINGS_TOLERANCE = 0.02
DEMO_ROUNDS = 250  # Prometheus looks at its targets some 5 s after its start


def regex_of(values):
    """What Grafana puts for a variable with these values chosen."""
    escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", lambda m: "\\\\" + m.group(), value) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


class Prometheus(harness.Process):
    address = None

    def listening(self):
        """The port it was given; it does not say itself."""
        sockets = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, timeout=10).stdout
        found = re.search(rf"127\.0\.0\.1:(\d+)\s.*pid={self.pid},", sockets)
        self.address = f"127.0.0.1:{found.group(1)}" if found else None
        return self.address

    def ready(self):
        """It listens before it can answer queries."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=20) as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return False

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def instant(self, expr, at):
        """[(labels, value)]"""
        return [(s["metric"], float(s["value"][1])) for s in self.get("query", query=expr, time=at)["result"]]

    def range(self, expr, start, end):
        """[(labels, [(time, value)])]"""
        found = self.get("query_range", query=expr, start=start, end=end, step=STEP_SECONDS)["result"]
        return [(s["metric"], [(t, float(v)) for t, v in s["values"]]) for s in found]

    def firing(self):
        return {(a["labels"]["alertname"], a["labels"]["instance"]) for a in self.get("alerts")["alerts"]
                if a["state"] == "firing"}


class WatchedTest(harness.ProcessTest):
    """A Prometheus with the shipped files, and the dashboard's queries to it."""

    def start_prometheus(self, server, stalled_seconds=300):
        """The shipped files in a folder of their own, with shorter times; `server` is its first target."""
        self.assertTrue(shutil.which("prometheus"), "prometheus is missing: run scripts/setup, or install Debian's package")
        top = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        self.shipped = top / "prometheus"
        shutil.copytree(ROOT / "deploy/prometheus", self.shipped)
        for path, pattern, text, count in (
                ("prometheus.yml", r"(?<=_interval: )15s$", SCRAPE, 2),
                ("rules/signvote.yml", r"(?<=^        for: )(?!0m)\w+$", ALERT_WAIT,
                 sum(alert.wait != "0m" for alert in definition.ALERTS)),
                ("rules/signvote.yml", r"(?<=last_commit_timestamp_seconds > )300", str(stalled_seconds), 1)):
            changed, found = re.subn(pattern, text, (self.shipped / path).read_text(), flags=re.MULTILINE)
            self.assertEqual(found, count, path)
            (self.shipped / path).write_text(changed)
        self.write_targets("workers", [])
        self.write_targets("server", [server])
        self.prometheus = self.start("prometheus", [
            shutil.which("prometheus"), "--config.file", self.shipped / "prometheus.yml", "--log.level=warn",
            "--storage.tsdb.path", top / "tsdb", "--web.listen-address=127.0.0.1:0"], Prometheus)
        self.wait_until("Prometheus listens", self.prometheus.listening)
        self.wait_until("Prometheus is ready", self.prometheus.ready)

    def write_targets(self, name, addresses):
        path = self.shipped / "targets" / f"{name}.json"
        path.with_suffix(".new").write_text(json.dumps([{"targets": addresses}]))
        path.with_suffix(".new").rename(path)

    def variables(self, at, of=definition.VARIABLES):
        """Grafana's variables, each chosen to be All, by their own queries."""
        chosen = {"__rate_interval": f"{RATE_SECONDS}s"}
        for variable in of:
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.query).groups()
            values = self.prometheus.get(f"label/{label}/values", **{"match[]": build.substitute(selector, chosen)})
            self.assertTrue(values, f"variable {variable.name} has no value")
            chosen[variable.name] = regex_of(values)
        return chosen

    def savings(self, at):
        """{title: value} of the single numbers in the row Savings, which ask the server alone."""
        chosen = self.variables(at, [v for v in definition.VARIABLES if v.name in ("job", "instance")])
        found = {}
        for panel in definition.ROWS[0].panels:
            if panel.kind == "stat":
                (_, value), = self.prometheus.instant(build.substitute(build.panel_expr(panel.queries[0]), chosen), at)
                found[panel.title] = value
        return found

    def assert_near(self, value, expected):
        self.assertLessEqual(abs(value / expected - 1), SAVINGS_TOLERANCE, f"{value} is not near {expected}")


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class Dashboard(WatchedTest):
    def attach(self, *names):
        """Starts workers and adds them to the targets. The first measures the held-out loss."""
        for name in names:
            held_out = ["--eval-tokens", 1024] if not self.workers else ["--eval", "off"]
            self.workers[name] = self.start_worker(name, "--model", "nano", "--batch", 2, "--sequence", 64, "--threads", 1,
                                                   *held_out, program="signvote-worker")
        for name in names:
            found = self.wait_until(f"{name} names its HTTP port", lambda: re.search(
                r"serving metrics address=(\S+)", self.workers[name].log()), timeout=60)
            self.addresses[name] = found.group(1)
        self.write_targets("workers", list(self.addresses.values()))
        self.wait_until(f"{', '.join(names)} and the server are scraped", lambda: len(self.prometheus.instant(
            "up == 1", time.time())) == 1 + len(self.addresses), timeout=60)

    # ---- what is asked ----------------------------------------------------------------------------------------------

    def ask_panels(self, start, end):
        """{title: [(legend, [(time, value)])]}; every query must answer up to the end, with finite numbers, or with NaN alone
        where the run's rule has no such number."""
        chosen, answers = self.variables(end), {}
        for row in definition.ROWS:
            for panel in row.panels:
                lines = answers[panel.title] = []
                for query in panel.queries:
                    expr = build.substitute(build.panel_expr(query), chosen)
                    with self.subTest(panel=panel.title, expr=expr):
                        if panel.kind == "stat":
                            found = [(labels, [(end, value)]) for labels, value in self.prometheus.instant(expr, end)]
                        else:
                            found = self.prometheus.range(expr, start, end)
                        self.assertTrue(found, "no data")
                        self.assertGreater(max(points[-1][0] for _, points in found), end - 2 * STEP_SECONDS, "ends early")
                        for labels, points in found:
                            if panel.title in NOT_OF_THIS_RULE:
                                self.assertTrue(all(math.isnan(value) for _, value in points), f"{labels}: {points}")
                                continue
                            self.assertTrue(all(math.isfinite(value) for _, value in points), f"{labels}: {points}")
                            legend = re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m.group(1), ""), query.legend)
                            lines.append((legend, points))
        return answers

    def check_alerts_have_data(self, at):
        """No alert can be silent for want of data: a name that does not exist, labels that do not meet."""
        for alert in definition.ALERTS:
            for left in [alert.left] + [f"({alert.left}) and on ({guard.on}) ({guard.left})" for guard in alert.guards]:
                with self.subTest(alert=alert.name, expr=left):
                    found = self.prometheus.instant(left, at)
                    self.assertTrue(found, "no data")
                    self.assertTrue(all(math.isfinite(value) for _, value in found), found)

    # ---- the run ----------------------------------------------------------------------------------------------------

    @harness.timed
    def test_panels_and_alerts_on_a_real_run(self):
        self.certify("a", "b", "c", "d")
        self.workers, self.addresses = {}, {}
        # Without a deadline a busy machine makes no abstentions.
        self.start_server("--deadline", "off", "--digest-every", 10, "--eval-every", 20, "--journal", self.folder / "journal",
                          rounds=ROUNDS, workers_min=3)
        self.start_prometheus(self.server.http)
        self.attach("a", "b", "c")
        self.wait_round(10, timeout=120)
        begin = time.time()
        time.sleep(max(SETTLE_SECONDS, 0.3 * WATCH_SECONDS))
        self.attach("d")
        attached = time.time()
        self.wait_until("d votes", lambda: "d" in self.rounds()[-1]["voters"])
        time.sleep(max(SETTLE_SECONDS, 0.4 * WATCH_SECONDS))
        killed = time.time()
        fired = self.prometheus.range('ALERTS{alertstate="firing"}', begin, killed)
        self.assert_in_time(fired == [], f"nothing was wrong, but these fired, rightly if the machine stood still: {fired}")

        self.workers["b"].kill()
        expected = {("SignvoteWorkerDown", self.addresses["b"]), ("SignvoteWorkerLost", self.server.http)}
        self.wait_until("the killed worker's alerts fire", lambda: self.prometheus.firing() >= expected)
        time.sleep(max(SETTLE_SECONDS, 0.3 * WATCH_SECONDS))
        firing = self.prometheus.firing()
        self.assertLessEqual(expected, firing)
        self.assert_in_time(firing == expected, f"beside those of the killed worker these fire: {firing - expected}")

        # The stats are of the same moment as the counters: nothing moves while the run is paused.
        end = time.time()
        answers = self.ask_panels(begin, end)
        self.check_alerts_have_data(end)
        self.assertEqual(self.ctl("pause")[0], harness.OK)
        self.wait_until("the run is paused", lambda: self.status()["phase"] == "paused")
        round_now = self.status()["round"]
        self.wait_until("the pause is scraped", lambda: [v for _, v in self.prometheus.instant(
            "signvote_server_paused and signvote_server_round == %d" % round_now, time.time())] == [1])
        savings = self.savings(time.time())
        wire = self.status()["wire"]
        moved = wire["up_rounds_bytes"] + wire["down_rounds_bytes"]
        self.assertGreater(moved, 1e6)
        self.assert_near(savings["Compression since the start"], 2 * wire["fp32_equivalent_bytes"] / moved)
        self.assert_near(savings["Bytes moved"], moved)
        self.assert_near(savings["Bytes saved"], 2 * wire["fp32_equivalent_bytes"] - moved)
        # One of the four uploaded the initial parameters, three fetched the replica.
        replicas = savings["Bytes for joining"] / (4 * self.status()["coordinates"])
        self.assertGreaterEqual(replicas, 4)
        self.assertLess(replicas, 4.5)
        self.assertEqual(self.ctl("resume")[0], harness.OK)

        survivors = [self.workers[name] for name in "acd"]
        for worker in survivors:
            worker.signal(15)
        for worker in survivors:
            self.assert_exit(worker, harness.OK, timeout=60)
        # The other end of the sockets counted for itself.
        for worker in survivors:
            with self.subTest(worker=worker.name):
                mine = self.report(worker.name)["wire"]
                ratio = 2 * mine["fp32_bytes_per_round"] / (mine["sent_bytes_per_round"] + mine["received_bytes_per_round"])
                self.assert_near(savings["Compression since the start"], ratio)
        self.server.signal(15)
        self.wait_end(30)
        if RESULTS:
            self.write_results(begin, end, answers, [(attached, "d attached"), (killed, "b killed")])

    def write_results(self, begin, end, answers, events):
        names = {address: name for name, address in self.addresses.items()}
        names[self.server.http] = "server"

        def readable(legend):
            for address, name in names.items():
                legend = legend.replace(address, name)
            return legend.replace("server server", "server")

        pathlib.Path(RESULTS).write_text(json.dumps({
            "begin": begin, "end": end, "rate_seconds": RATE_SECONDS, "events": events,
            "panels": {title: [[readable(legend), points] for legend, points in lines] for title, lines in answers.items()}}))


class Faults(WatchedTest):
    def fires(self, name):
        return (name, self.server.http) in self.prometheus.firing()

    def test_a_stalled_round_and_a_full_disk_are_told(self):
        self.certify("a", "b")
        small = self.small_disk("90m")
        self.start_server("--journal", small / "journal", "--deadline", "off", rounds=harness.FOREVER, workers_min=2)
        self.start_prometheus(self.server.http, stalled_seconds=2)
        workers = [self.start_worker(name, "--coordinates", 1_600_000) for name in "ab"]
        self.wait_round(5)
        self.wait_until("the server is scraped", lambda: self.prometheus.instant("signvote_server_round > 0", time.time()))
        self.assertFalse(self.fires("SignvoteJournalFailed"))

        harness.stop(workers[1])
        self.wait_until("the stalled round is told", lambda: self.fires("SignvoteRunStalled"))
        harness.cont(workers[1])
        self.wait_until("the run goes on", lambda: not self.fires("SignvoteRunStalled"))

        harness.fill_disk(small)
        self.wait_until("the full disk is told before it is too late", lambda: self.fires("SignvoteJournalDiskFills"))
        self.wait_until("a journal that failed is told", lambda: self.fires("SignvoteJournalFailed"), timeout=180)
        self.assertTrue(self.server.alive)


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class DemoReport(WatchedTest):
    def test_the_savings_panel_equals_the_demos_report(self):
        """scripts/demo with its late and its killed worker, watched from its first round to the last scrape."""
        out = self.folder / "out"
        demo = self.start("demo", [sys.executable, ROOT / "scripts/lib/demo.py", "--bin", harness.BIN, "--out", out, "--rounds",
                                   DEMO_ROUNDS, "--batch", 2, "--sequence", 64, "--threads", 1])
        self.addCleanup(self.end, demo)
        ports = self.wait_until("the demo's server listens", lambda: self.read_json(out / "ports.json"), timeout=60)
        self.start_prometheus(f"127.0.0.1:{ports['http']}")
        seen = {}  # by the round of the scrape

        def watched():
            now = time.time()
            for _, round_number in self.prometheus.instant("signvote_server_round > 0", now):
                seen[int(round_number)] = self.savings(now)
            return not demo.alive
        self.wait_until("the demo ends", watched, timeout=240, poll=0.2)
        self.assert_exit(demo, harness.OK)
        last = max(seen)
        self.assertGreater(last, DEMO_ROUNDS / 2, "watched to its end")
        wire = self.read_json(out / "report.json")["wire"]
        self.assert_near(seen[last]["Compression since the start"],
                         2 * wire["fp32_bytes_per_round"] / (wire["up_bytes_per_round"] + wire["down_bytes_per_round"]))

    @staticmethod
    def end(demo):
        """It ends its own server and workers, where a failed test did not wait for it."""
        if demo.alive:
            demo.signal(signal.SIGTERM)
            demo.wait(30)

    @staticmethod
    def read_json(path):
        """What a file holds, or nothing before it is whole."""
        try:
            return json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            return None


if __name__ == "__main__":
    unittest.main(verbosity=2)
