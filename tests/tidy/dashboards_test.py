"""The dashboard, the alerts and their page follow from one definition, and name only metrics that the programs have.

promtool (Debian's package prometheus, which scripts/setup installs) checks the files that Prometheus reads and runs the
alerts' cases. What they show of a real run is tests/e2e/dashboard_test.py's to check.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "dashboards"), str(ROOT / "tests" / "tidy")]

import build  # noqa: E402
import definition  # noqa: E402
import tidy  # noqa: E402

CASES = ROOT / "deploy" / "prometheus" / "tests" / "signvote_test.yml"
TARGET_LABELS = {"job", "instance"}


def promtool(*arguments, cwd=ROOT):
    if not shutil.which("promtool"):
        raise AssertionError("promtool is missing: run scripts/setup, or install Debian's package prometheus")
    done = subprocess.run(["promtool", *map(str, arguments)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60)
    return done.returncode, done.stdout + done.stderr


def registry():
    """{metric: (type, labels)} of docs/metrics.md, which other tests hold to the programs."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) ?\| ", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def expressions():
    """(where, expression) of everything that asks Prometheus something."""
    for row in definition.ROWS:
        for panel in row.panels:
            for query in panel.queries:
                yield f"panel '{panel.title}'", build.panel_expr(query)
    for record in definition.RECORDS:
        yield f"rule {record.name}", record.expr
    for alert in definition.ALERTS:
        yield f"alert {alert.name}", build.alert_expr(alert)


def cases():
    """[(alert, sentence, YAML)] of the alerts' cases."""
    found = []
    for block in re.split(r"^  - (?=name: )", CASES.read_text(), flags=re.MULTILINE)[1:]:
        alert, sentence = re.match(r'name: "(\w+): (.+)"\n', block).groups()
        found.append((alert, sentence, block))
    return found


def png_texts(picture):
    """{keyword: text} of a PNG's tEXt chunks."""
    texts, at = {}, 8
    while at < len(picture):
        (size,), kind = struct.unpack_from(">I", picture, at), picture[at + 4:at + 8]
        if kind == b"tEXt":
            key, _, text = picture[at + 8:at + 8 + size].partition(b"\0")
            texts[key.decode("latin-1")] = text.decode("latin-1")
        at += 12 + size
    return texts


class Dashboards(unittest.TestCase):
    maxDiff = None

    def test_the_files_are_what_the_definition_says(self):
        for path, text in build.outputs().items():
            self.assertTrue((ROOT / path).read_text() == text, f"{path} is stale: run dashboards/build.py")

    def test_every_metric_exists(self):
        known = {"up", *(record.name for record in definition.RECORDS)}
        for name, (kind, _) in registry().items():
            known |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
        self.assertGreater(len(known), 80)
        for where, expr in expressions():
            used = build.metrics_in(expr)
            self.assertTrue(used, f"{where}: no metric in '{expr}'")
            self.assertEqual(set(used) - known, set(), f"{where}: not in docs/metrics.md")

    def test_only_counters_are_differentiated(self):
        kinds = registry()
        for where, expr in expressions():
            counted = re.findall(r"\b(?:rate|increase)\(([\w:]+)", expr)
            for name in counted:
                base = re.sub(r"_(?:bucket|sum|count)$", "", name)
                self.assertIn(kinds[name if name in kinds else base][0], ("counter", "histogram"), f"{where}: {name}")
            # Each of them was looked at: the argument is a metric, not an expression.
            self.assertEqual(len(counted), len(re.findall(r"\b(?:rate|increase)\(", expr)), f"{where}: '{expr}'")

    def test_legends_and_texts_name_labels_that_there_are(self):
        kinds = registry()

        def labels(expr):
            return TARGET_LABELS.union(*(kinds[m][1] for m in build.metrics_in(expr) if m in kinds))

        for row in definition.ROWS:
            for panel in row.panels:
                for query in panel.queries:
                    named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
                    self.assertLessEqual(named, labels(query.expr), panel.title)
                legends = [query.legend for query in panel.queries]
                self.assertEqual(len(legends), len(set(legends)), panel.title)
        for alert in definition.ALERTS:
            named = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
            self.assertLessEqual(named, labels(alert.left), alert.name)

    def test_panels_lie_beside_each_other(self):
        dashboard = json.loads((ROOT / build.DASHBOARD).read_text())
        panels = dashboard["panels"]
        self.assertEqual(len({p["id"] for p in panels}), len(panels))
        self.assertEqual([p["title"] for p in panels if p["type"] == "row"], [r.title for r in definition.ROWS])
        for a, b in itertools.combinations((p["gridPos"] for p in panels), 2):
            beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
            self.assertTrue(beside or below, f"{a} and {b} overlap")
        text = json.dumps(dashboard)
        names = {v["name"] for v in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
        self.assertEqual(set(re.findall(r"\$\{?(\w+)", text)) - names, set())
        for placeholder in ("{S}", "{W}", "[R]"):
            self.assertNotIn(placeholder, text)

    def test_the_picture_is_one_of_this_dashboard(self):
        picture = (ROOT / build.PICTURE).read_bytes()
        self.assertEqual(png_texts(picture).get(build.PICTURE_KEY), build.picture_of(),
                         f"{build.PICTURE} shows other panels or queries: draw it again (dashboards/render.py)")
        self.assertIn(pathlib.PurePath(build.PICTURE).name, (ROOT / definition.PAGE).read_text())

    def test_every_alert_leads_to_its_section(self):
        anchors = tidy.anchors((ROOT / definition.PAGE).read_text())
        for link in re.findall(r'^ +runbook: "(.*)"$', (ROOT / build.RULES).read_text(), re.MULTILINE):
            page, _, anchor = link.partition("#")
            self.assertEqual(page, definition.PAGE)
            self.assertIn(anchor, anchors)

    # ---- Prometheus -------------------------------------------------------------------------------------------------

    def test_prometheus_takes_the_configuration(self):
        code, out = promtool("check", "config", "deploy/prometheus/prometheus.yml")
        self.assertEqual(code, 0, out)
        self.assertIn("1 rule files found", out)

    def test_prometheus_takes_the_pages_static_targets(self):
        example = re.search(r"```yaml\n(scrape_configs:\n.*?)```", (ROOT / definition.PAGE).read_text(), re.DOTALL).group(1)
        for job in (definition.SERVER_JOB, definition.WORKER_JOB):
            self.assertIn(f"job_name: {job}\n", example)
            self.assertIn(f"job_name: {job}\n", (ROOT / "deploy/prometheus/prometheus.yml").read_text())
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "prometheus.yml"
            path.write_text(example)
            code, out = promtool("check", "config", path)
        self.assertEqual(code, 0, out)

    def test_prometheus_takes_the_rules(self):
        code, out = promtool("check", "rules", build.RULES)
        self.assertEqual(code, 0, out)
        self.assertIn(f"{len(definition.ALERTS) + len(definition.RECORDS)} rules found", out)

    # ---- each alert -------------------------------------------------------------------------------------------------

    def test_every_alert_fires_and_is_silent_in_a_case(self):
        seen = {}
        for alert, sentence, block in cases():
            fires = sentence.startswith("fires ")
            self.assertTrue(fires or sentence.startswith("silent "), f"{alert}: '{sentence}'")
            self.assertEqual(re.findall(r"alertname: (\w+)\n", block), [alert])
            self.assertEqual("exp_alerts: []" in block, not fires, f"{alert}: '{sentence}' expects something else")
            self.assertEqual("exp_labels:" in block, fires, f"{alert}: '{sentence}' expects something else")
            seen.setdefault(alert, set()).add(fires)
        self.assertEqual(seen, {alert.name: {True, False} for alert in definition.ALERTS})

    def test_the_cases_hold(self):
        code, out = promtool("test", "rules", CASES)
        self.assertEqual(code, 0, out)

    def failed_cases(self, change):
        """Alerts of which a firing case, and of which a silent case, fails when every alert is changed."""
        original = definition.ALERTS
        try:
            definition.ALERTS = tuple(change(alert) for alert in original)
            rules = build.rules_yaml()
        finally:
            definition.ALERTS = original
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "rules").mkdir()
            (folder / "tests").mkdir()
            (folder / "rules" / "signvote.yml").write_text(rules)
            (folder / "tests" / "cases.yml").write_text(CASES.read_text())
            _, out = promtool("test", "rules", folder / "tests" / "cases.yml")
        return tuple(set(re.findall(rf"^ +name: (\w+): {kind} ", out, re.MULTILINE)) for kind in ("fires", "silent"))

    def test_the_cases_notice_alerts_that_never_or_always_fire(self):
        every = {alert.name for alert in definition.ALERTS}
        fires, silent = self.failed_cases(lambda a: dataclasses.replace(a, left=f"({a.left}) > 0 < 0", condition=""))
        self.assertEqual((fires, silent), (every, set()))
        _, silent = self.failed_cases(lambda a: dataclasses.replace(a, condition="", wait="0m", guards=()))
        self.assertEqual(silent, every)


if __name__ == "__main__":
    unittest.main(verbosity=2)
