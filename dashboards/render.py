#!/usr/bin/env python3
"""Draws the dashboard from the answers of a real run, where there is no Grafana to take a picture of.

    SIGNVOTE_DASHBOARD_SECONDS=200 SIGNVOTE_DASHBOARD_ROUNDS=5000 SIGNVOTE_DASHBOARD_RESULTS=$PWD/results.json \\
        ctest --test-dir build/dev -R e2e_dashboard_test
    dashboards/render.py results.json docs/images/dashboard.png

Rows, panels, widths and queries are those of dashboards/signvote.json; the drawing is matplotlib's, not Grafana's. Needs
matplotlib (pip install matplotlib).
"""

import argparse
import json
import pathlib
import sys

import build

DASHBOARD = pathlib.Path(__file__).resolve().parent / "signvote.json"
BACKGROUND, PANEL, TEXT, DIM, GRID = "#111217", "#181b1f", "#ccccdc", "#8e8e99", "#2c3235"
COLOURS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#5794f2", "#705da0"]
INCHES_PER_COLUMN, INCHES_PER_LINE = 0.68, 0.29
PADDING = 0.08  # inches between panels


def scaled(value, steps, form="{:.3g}"):
    """`value` with the largest of [(size, unit)] that it reaches."""
    for size, unit in steps:
        if abs(value) >= size:
            return f"{form.format(value / size)}{unit}"
    return f"{form.format(value / steps[-1][0])}{steps[-1][1]}"


def text_of(value, unit, decimals=None):
    """A number as Grafana writes it in this unit."""
    if value == 0 and unit != "percentunit":
        return "0"
    if unit in ("decbytes", "Bps"):
        suffix = "/s" if unit == "Bps" else ""
        return scaled(value, [(1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")]) + suffix
    if unit == "s":
        return scaled(value, [(86400, " d"), (3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms"), (1e-6, " µs")])
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit.startswith("suffix:"):
        return f"{value:.{1 if decimals is None else decimals}f}{unit.removeprefix('suffix:')}"
    return f"{value:.4g}" if abs(value) < 1e4 else scaled(value, [(1e9, " B"), (1e6, " M"), (1e3, " K")])


def draw_stat(axis, panel, lines):
    axis.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    value = lines[0][1][-1][1]
    axis.text(0.5, 0.42, text_of(value, defaults["unit"], defaults.get("decimals")), ha="center", va="center", color="#73bf69",
              fontsize=20 if panel["gridPos"]["w"] > 4 else 14, weight="bold")


def draw_graph(axis, panel, lines, results, ticker):
    defaults, custom = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["defaults"]["custom"]
    begin = results["begin"]
    if custom["stacking"]["mode"] == "normal":
        times = sorted(set.intersection(*({t for t, _ in points} for _, points in lines)))
        values = [[dict(map(tuple, points))[t] for t in times] for _, points in lines]
        axis.stackplot([t - begin for t in times], *values, labels=[legend for legend, _ in lines], colors=COLOURS, alpha=0.55)
    else:
        for index, (legend, points) in enumerate(lines):
            colour = COLOURS[index % len(COLOURS)]
            axis.plot([t - begin for t, _ in points], [v for _, v in points], color=colour, linewidth=1.1, label=legend,
                      drawstyle="steps-post" if custom["drawStyle"] == "bars" else "default")
            if custom["drawStyle"] == "bars":
                axis.fill_between([t - begin for t, _ in points], [v for _, v in points], step="post", color=colour, alpha=0.3)
    if custom["scaleDistribution"]["type"] == "log":
        axis.set_yscale("log")
        least, most = axis.get_ylim()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if most / least < 300 else (1,)))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: text_of(v, defaults["unit"], defaults.get("decimals"))))
    nothing = all(value == 0 for _, points in lines for _, value in points)
    low, high = axis.get_ylim()
    axis.set_ylim(defaults.get("min", low), defaults.get("max", 1 if nothing else high))
    seconds = results["end"] - begin
    axis.xaxis.set_major_locator(ticker.MultipleLocator(next((s for s in (5, 15, 60, 300, 900) if seconds / s < 5), 3600)))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda t, _: f"{int(t) // 60}:{int(t) % 60:02d}"))
    for when, _ in results["events"]:
        axis.axvline(when - begin, color=DIM, linestyle=":", linewidth=0.8)
    axis.set_xlim(0, seconds)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(colors=DIM, labelsize=7, length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path, help="what tests/e2e/dashboard_test.py wrote")
    parser.add_argument("picture", type=pathlib.Path)
    options = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        print("dashboards/render.py: matplotlib is missing: pip install matplotlib", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker, patches
    results = json.loads(options.results.read_text())
    panels = json.loads(DASHBOARD.read_text())["panels"]
    lines_high = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    width, height = 24 * INCHES_PER_COLUMN, lines_high * INCHES_PER_LINE + 0.45
    figure = pyplot.figure(figsize=(width, height), facecolor=BACKGROUND)
    note = "; ".join(f"{text} at {int(when - results['begin']) // 60}:{int(when - results['begin']) % 60:02d}"
                     for when, text in results["events"])
    figure.text(0.012, 1 - 0.24 / height, "signvote", color=TEXT, fontsize=13, weight="bold", va="center")
    figure.text(0.07, 1 - 0.24 / height, f"answers of Prometheus to the panels' queries, drawn by matplotlib; {note}", color=DIM,
                fontsize=9, va="center")
    for panel in panels:
        where = panel["gridPos"]
        top = 0.45 + where["y"] * INCHES_PER_LINE
        left, wide, high = where["x"] * INCHES_PER_COLUMN, where["w"] * INCHES_PER_COLUMN, where["h"] * INCHES_PER_LINE

        def box(x, y, w, h):
            """Inches from the top left corner, as a part of the figure."""
            return [x / width, 1 - (y + h) / height, w / width, h / height]

        if panel["type"] == "row":
            figure.text(0.012, 1 - (top + high / 2) / height, f"⌄ {panel['title']}", color=TEXT, fontsize=11, va="center")
            continue
        x, y, w, h = box(left + PADDING / 2, top + PADDING / 2, wide - PADDING, high - PADDING)
        figure.add_artist(patches.FancyBboxPatch((x, y), w, h, boxstyle="square,pad=0", facecolor=PANEL, edgecolor=GRID,
                                                 linewidth=0.6, transform=figure.transFigure, zorder=-1))
        figure.text((left + 0.15) / width, 1 - (top + 0.2) / height, panel["title"], color=TEXT, fontsize=8.5, va="center",
                    weight="bold")
        lines = results["panels"][panel["title"]]
        if panel["type"] == "stat":
            draw_stat(figure.add_axes(box(left, top + 0.3, wide, high - 0.4)), panel, lines)
            continue
        axis = figure.add_axes(box(left + 0.68, top + 0.36, wide - 0.86, high - 1.0), facecolor=PANEL)
        draw_graph(axis, panel, lines, results, ticker)
        figure.legend(*axis.get_legend_handles_labels(), loc="lower left", ncols=6, frameon=False, fontsize=7, labelcolor=TEXT,
                      handlelength=1.2, columnspacing=1, borderaxespad=0,
                      bbox_to_anchor=((left + 0.15) / width, 1 - (top + high - 0.12) / height))
    # By which a test sees that the picture is one of this dashboard.
    figure.savefig(options.picture, dpi=110, facecolor=BACKGROUND, metadata={build.PICTURE_KEY: build.picture_of()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
