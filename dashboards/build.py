#!/usr/bin/env python3
"""Writes what follows from dashboards/definition.py; with --check only says which files differ (exit status 1).

Written are dashboards/signvote.json (Grafana), deploy/prometheus/rules/signvote.yml (recording rules and alerts) and, in
docs/dashboards.md, what lies between the markers. Standard library only.
"""

import argparse
import hashlib
import json
import pathlib
import re
import sys
import textwrap

import definition

ROOT = pathlib.Path(__file__).resolve().parents[1]
DASHBOARD = "dashboards/signvote.json"
RULES = "deploy/prometheus/rules/signvote.yml"
PICTURE, PICTURE_KEY = "docs/images/dashboard.png", "signvote-dashboard"
SELECTORS = {"{S}": '{job=~"$job",instance=~"$instance"}', "{W}": '{job=~"$worker_job",instance=~"$worker"}'}
NOTE = "Written by dashboards/build.py from dashboards/definition.py; change it there."
ROW_HEIGHT, STAT_HEIGHT, GRAPH_HEIGHT, GRID = 1, 4, 8, 24
PAGE_WIDTH = 120


# ---- PromQL ---------------------------------------------------------------------------------------------------------


def panel_expr(query):
    """A panel's query as Grafana gets it."""
    text = query.expr.replace("[R]", "[$__rate_interval]")
    for placeholder, selector in SELECTORS.items():
        text = text.replace(placeholder, selector)
    return text


def alert_expr(alert):
    """The whole condition of an alert."""
    text = f"{alert.left} {alert.condition}"
    for guard in alert.guards:
        text += f"\n  {guard.join} on ({guard.on}) {guard.left} {guard.condition}"
    return text


def substitute(text, variables):
    """`$name` and `${name}` replaced as Grafana does before it asks; KeyError names an unknown variable."""
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: variables[m.group(1) or m.group(2)], text)


def metrics_in(expr):
    """The metric and rule names of an expression, histogram suffixes included."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"', '""', expr)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return sorted(set(re.findall(r"\b(?:signvote|process|up\b|scrape|go|prometheus)[\w:]*(?!\s*\()", bare)))


# ---- Grafana --------------------------------------------------------------------------------------------------------


def datasource():
    return {"type": "prometheus", "uid": "${datasource}"}


def target(index, panel, query):
    instant = panel.kind == "stat"
    return {"refId": chr(ord("A") + index), "datasource": datasource(), "editorMode": "code", "expr": panel_expr(query),
            "legendFormat": query.legend, "instant": instant, "range": not instant}


def panel_json(number, panel, position):
    defaults = {"unit": panel.unit, "color": {"mode": "palette-classic"}, "mappings": [],
                "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]}}
    for key, value in (("min", panel.low), ("max", panel.high), ("decimals", panel.decimals)):
        if value is not None:
            defaults[key] = value
    if panel.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        options = {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
                   "textMode": "value", "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    else:
        defaults["custom"] = {
            "drawStyle": "bars" if panel.bars else "line", "lineWidth": 1, "showPoints": "auto", "spanNulls": False,
            "fillOpacity": 40 if panel.bars or panel.stacked else 0, "axisPlacement": "auto",
            "scaleDistribution": {"type": "log", "log": 10} if panel.scale == "log" else {"type": "linear"},
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"}}
        options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                   "tooltip": {"mode": "multi", "sort": "desc"}}
    return {"id": number, "type": panel.kind, "title": panel.title, "description": panel.about, "datasource": datasource(),
            "gridPos": position, "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
            "targets": [target(k, panel, query) for k, query in enumerate(panel.queries)]}


def variables_json():
    every = {"text": ["All"], "value": ["$__all"]}
    out = [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1,
            "hide": 0, "regex": "", "includeAll": False, "multi": False, "options": [], "current": {}}]
    for variable in definition.VARIABLES:
        out.append({"name": variable.name, "label": variable.label, "type": "query", "datasource": datasource(),
                    "definition": variable.query, "query": {"query": variable.query, "refId": variable.name}, "refresh": 2,
                    "sort": 1, "hide": 0, "regex": "", "includeAll": True, "multi": True, "options": [], "current": every})
    return out


def dashboard_json():
    panels, number, top = [], 0, 0
    for row in definition.ROWS:
        number += 1
        panels.append({"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": GRID, "h": ROW_HEIGHT}})
        top += ROW_HEIGHT
        left = height = 0
        for panel in row.panels:
            if left + panel.width > GRID:
                left, top, height = 0, top + height, 0
            number += 1
            # A number beside graphs is as high as they are.
            alone = panel.kind == "stat" and all(p.kind == "stat" for p in line_of(row, panel))
            tall = STAT_HEIGHT if alone else GRAPH_HEIGHT
            panels.append(panel_json(number, panel, {"x": left, "y": top, "w": panel.width, "h": tall}))
            left, height = left + panel.width, max(height, tall)
        top += height
    return {"uid": definition.UID, "title": definition.TITLE, "description": NOTE, "tags": ["signvote"], "schemaVersion": 39,
            "version": 1, "editable": True, "graphTooltip": 1, "refresh": "30s", "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser", "fiscalYearStartMonth": 0, "weekStart": "", "timepicker": {}, "links": [],
            "annotations": {"list": []}, "templating": {"list": variables_json()}, "panels": panels}


def picture_of():
    """What a picture of the dashboard says that it shows: rows and panels with their queries, in short."""
    shown = [[row.title, [[p.title, p.kind, p.unit, [query.expr for query in p.queries]] for p in row.panels]]
             for row in definition.ROWS]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def line_of(row, wanted):
    """The panels that stand beside `wanted`."""
    line, left = [], 0
    for panel in row.panels:
        if left + panel.width > GRID:
            if wanted in line:
                return line
            line, left = [], 0
        line.append(panel)
        left += panel.width
    return line


# ---- Prometheus -----------------------------------------------------------------------------------------------------


def block(key, text, indent):
    """A YAML mapping entry with a literal text."""
    pad = " " * indent
    return f"{pad}{key}: |-\n" + "".join(f"{pad}  {line}\n" for line in text.splitlines())


def rules_yaml():
    out = [f"# {NOTE}\n", "groups:\n", "  - name: signvote-records\n", "    rules:\n"]
    for record in definition.RECORDS:
        out += [f"      - record: {record.name}\n", block("expr", record.expr, 8)]
    out += ["  - name: signvote-alerts\n", "    rules:\n"]
    for alert in definition.ALERTS:
        out += [f"      - alert: {alert.name}\n", block("expr", alert_expr(alert), 8), f"        for: {alert.wait}\n",
                "        labels:\n", f"          severity: {alert.severity}\n", "        annotations:\n",
                f"          summary: {json.dumps(alert.summary)}\n",
                f"          description: {json.dumps(alert.description)}\n",
                f"          runbook: {json.dumps(definition.PAGE + '#' + alert.name.lower())}\n"]
    return "".join(out)


# ---- the page -------------------------------------------------------------------------------------------------------


def panels_markdown():
    out = []
    for row in definition.ROWS:
        out.append(f"**{row.title}**\n\n| panel | shows |\n|---|---|\n")
        out += [f"| {panel.title} | {panel.about} |\n" for panel in row.panels]
        out.append("\n")
    return "".join(out)


def alerts_markdown():
    out = []
    for alert in definition.ALERTS:
        after = "at once" if alert.wait == "0m" else f"after {alert.wait}"
        out.append(f"### {alert.name}\n\n{alert.severity}, {after}:\n\n```\n{alert_expr(alert)}\n```\n\n"
                   f"{textwrap.fill(alert.runbook, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)}\n\n")
    return "".join(out)


def page_text(page):
    for name, text in (("panels", panels_markdown()), ("alerts", alerts_markdown())):
        begin, end = f"<!-- {name}: written by dashboards/build.py -->\n", f"<!-- end of {name} -->\n"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{definition.PAGE}: needs the lines '{begin.strip()}' and '{end.strip()}' once each")
        head, rest = page.split(begin)
        page = head + begin + "\n" + text + end + rest.split(end)[1]
    return page


def outputs(root=ROOT):
    """{path: text} of every file that is written."""
    return {DASHBOARD: json.dumps(dashboard_json(), indent=1, ensure_ascii=False) + "\n",
            RULES: rules_yaml(),
            definition.PAGE: page_text((root / definition.PAGE).read_text())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a file differs")
    options = parser.parse_args()
    stale = [path for path, text in outputs().items()
             if not (ROOT / path).exists() or (ROOT / path).read_text() != text]
    for path in stale:
        if options.check:
            print(f"{path}: not what dashboards/definition.py says; run dashboards/build.py", file=sys.stderr)
        else:
            (ROOT / path).write_text(outputs()[path])
            print(path)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
