"""The pages that `signvote lab run` and `signvote lab sweep` write, as a browser shows them: Chromium, on a desk's screen and on a
telephone's, light and dark. Nothing comes from outside, nothing complains, nothing is cut off or lies upon another.
"""

import json
import pathlib
import shutil
import sys
import unittest

from playwright.sync_api import sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import harness  # noqa: E402
from harness import BIN, OK  # noqa: E402

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
WAIT_MS = 60_000
DESK, TELEPHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SCHEMES = ("light", "dark")
CONTRAST_LEAST = 4.5  # of text: WCAG 2.2, 1.4.3

RUNS = """
rounds = 60
[server]
rule = "fixed"
stepsize = 1e-3
eval-every = 0
[workers]
count = 2
coordinates = 20000
compute-ms = 10
[[events]]
round = 10
kind = "kill"
worker = "w2"
[[events]]
round = 20
kind = "server_kill"
[[events]]
round = 40
kind = "join"
worker = "w2"
[matrix]
workers.compute-ms = [10, 20]
"""

SWEEP = """
tasks = ["logistic"]
directions = ["signum", "lion"]
rules = ["fixed-cosine", "alias2"]
seeds = [1, 2]
[run]
eval-every = 0
[task.logistic]
max-rounds = 60
grid = 3e-2
"""

# Boxes in CSS pixels: [left, top, right, bottom].
BOXES = """(element) => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }"""

# Texts, the colour of each, and the first colour behind it that is not transparent; null: the browser's own.
COLOURS = """() => {
  const found = [];
  for (const element of document.querySelectorAll("h1, h2, p, td, th, svg text")) {
    const drawn = element instanceof SVGElement;
    let behind = element;
    while (behind && /^rgba\\(.*, 0\\)$|^transparent$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const style = getComputedStyle(element);
    found.push([element.textContent, drawn ? style.fill : style.color, behind && getComputedStyle(behind).backgroundColor]);
  }
  return found;
}"""


def channels(colour):
    """[0, 1] each, of "rgb(1, 2, 3)"."""
    return [int(c) / 255 for c in colour[colour.index("(") + 1:colour.index(")")].split(",")[:3]]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    brighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def overlap(a, b):
    """How far two boxes lie upon each other, in pixels."""
    return min(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))


@unittest.skipIf(CHROMIUM is None, "no chromium-headless-shell: run scripts/setup")
class Pages(harness.ProcessTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.playwright = sync_playwright().start()
        cls.addClassCleanup(cls.playwright.stop)
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, timeout=WAIT_MS)
        cls.addClassCleanup(cls.browser.close)

    def shown(self, path, screen, scheme):
        """The page, once it is drawn."""
        context = self.browser.new_context(viewport=screen, color_scheme=scheme)
        self.addCleanup(context.close)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri(), wait_until="load")
        self.assertEqual(asked, [path.as_uri()], "what the page asks for")
        self.assertEqual(said, [])
        self.assertEqual(page.evaluate("document.compatMode"), "CSS1Compat")
        return page

    def assert_fits(self, page, screen):
        """It moves up and down alone: what is wider than the screen moves for itself."""
        self.assertEqual(page.evaluate("window.innerWidth"), screen["width"], "the page was made for a screen of another width")
        wide = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(
            (e) => !e.closest(".wide") && e.getBoundingClientRect().right > window.innerWidth).map((e) => e.outerHTML.slice(0, 80))""")
        self.assertEqual(wide, [])
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), screen["width"])

    def assert_charts_are_whole(self, page):
        """Every text lies within its chart and upon no other, every curve is seen."""
        charts = page.query_selector_all("svg")
        for chart in charts:
            name = chart.get_attribute("aria-label")
            frame = chart.evaluate(BOXES)
            texts = [(text.text_content(), text.evaluate(BOXES)) for text in chart.query_selector_all("text")]
            self.assertTrue(texts, name)
            for i, (text, box) in enumerate(texts):
                self.assertTrue(frame[0] - 1 <= box[0] and box[2] <= frame[2] + 1 and frame[1] - 1 <= box[1] and box[3] <= frame[3] + 1,
                                f"{name}: {text!r} at {box} is cut off by {frame}")
                for other, its in texts[:i]:
                    self.assertLess(overlap(box, its), 2, f"{name}: {text!r} lies upon {other!r}")
            for curve in chart.query_selector_all("path[fill=none]"):
                left, top, right, bottom = curve.evaluate(BOXES)
                self.assertGreater((right - left) + (bottom - top), 10, f"{name}: a curve that nobody sees")
        return len(charts)

    def assert_legible(self, page):
        for text, colour, behind in page.evaluate(COLOURS):
            self.assertGreaterEqual(contrast(colour, behind or "rgb(255, 255, 255)"), CONTRAST_LEAST, f"{text!r}: {colour} on {behind}")

    def for_each_screen(self, path, look):
        for screen in (DESK, TELEPHONE):
            for scheme in SCHEMES:
                with self.subTest(width=screen["width"], scheme=scheme):
                    page = self.shown(path, screen, scheme)
                    self.assert_fits(page, screen)
                    self.assert_legible(page)
                    look(page)

    @staticmethod
    def rows(page, table):
        return [[cell.inner_text() for cell in row.query_selector_all("th, td")] for row in table.query_selector_all("tr")]

    def test_the_report_of_an_experiment(self):
        scenario, out = self.folder / "<a> & b.toml", self.folder / "out"
        scenario.write_text(RUNS)
        code, text, err = self.command("signvote", "lab", "run", scenario, "--out", out, "--progress", "off", timeout=120)
        self.assertEqual(code, OK, text + err)
        runs = json.loads((out / "report.json").read_text())["runs"]

        def look(page):
            self.assertEqual(page.title(), page.query_selector("h1").inner_text())
            self.assertIn("<a> & b", page.title())
            self.assertEqual(self.assert_charts_are_whole(page), 7)
            tables = page.query_selector_all("table")
            head, *rows = self.rows(page, tables[0])
            for row, run in zip(rows, runs, strict=True):
                says = dict(zip(head, row, strict=True))
                self.assertEqual((says["run"], says["outcome"], says["rounds"], says["lost commits"], says["replicas equal"]),
                                 (run["name"], run["outcome"], str(run["rounds"]), "0", "yes"))
                self.assertEqual(says["work kept"], f"{100 * run['work_kept']:.2f} %")
            for table, run in zip(tables[1:], runs, strict=True):
                self.assertEqual(len(self.rows(page, table)) - 1, len(run["events"]))

        self.for_each_screen(out / "report.html", look)

    @unittest.skipUnless((BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
    def test_the_report_of_a_sweep(self):
        sweep, out = self.folder / "sweep.toml", self.folder / "out"
        sweep.write_text(SWEEP)
        code, text, err = self.command("signvote", "lab", "sweep", sweep, "--output", out, timeout=300)
        self.assertEqual(code, OK, text + err)

        def look(page):
            self.assert_charts_are_whole(page)
            head, *rows = self.rows(page, page.query_selector("table"))
            self.assertIn("method", head)
            self.assertEqual(len(rows), 4, rows)

        self.for_each_screen(out / "report.html", look)


if __name__ == "__main__":
    harness.run_tests()
