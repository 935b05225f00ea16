"""dashboards/signvote.json against Grafana's own schema: every field, type and choice.

The schema is PyPI's grafana-foundation-sdk, which Grafana Labs generates from Grafana's sources, of the Grafana that
deploy/compose runs. The SDK reads a dashboard without judging it: fields that it does not know are dropped, values of any type
are kept. So the dashboard is read, written back and compared, and every value is held to the type that the SDK annotates.
What this cannot show: names of units, and the PromQL, which tests/e2e/dashboard_test.py asks a Prometheus.
"""

import copy
import enum
import importlib.metadata
import json
import pathlib
import re
import types
import typing
import unittest

from grafana_foundation_sdk.cog import encoder, plugins, runtime
from grafana_foundation_sdk.models import dashboard, prometheus

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "dashboards").glob("*.json"))
# Written by Grafana itself when it exports a dashboard, shown in its list of variables, and in no schema.
OUTSIDE_THE_SCHEMA = re.compile(r"templating\.list\[\d+\]\.definition")

plugins.register_default_plugins()


def compare(ours, read, where):
    """What of `ours` is not in `read`, which came of it: fields that the schema does not have."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            path = f"{where}.{key}".lstrip(".")
            if key in read:
                yield from compare(value, read[key], path)
            elif not OUTSIDE_THE_SCHEMA.fullmatch(path):
                yield f"{path}: no such field"
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for index, (a, b) in enumerate(zip(ours, read)):
            yield from compare(a, b, f"{where}[{index}]")
    elif ours != read:
        yield f"{where}: {ours!r} is read as {read!r}"


def is_model(value):
    return hasattr(value, "to_json")


def fits(value, kind):
    """Whether a value is of an annotated type; the fields of models are judged by misfits()."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if kind in (object, typing.Any):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in choices)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if origin is list:
        return isinstance(value, list) and all(fits(item, choices[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, choices[0]) and fits(v, choices[1]) for k, v in value.items())
    if issubclass(kind, enum.Enum):
        return isinstance(value, kind) or not isinstance(value, bool) and value in [choice.value for choice in kind]
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)


def misfits(value, where):
    """Every field of a model, and of the models within it, whose value is not of its type."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from misfits(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from misfits(item, f"{where}.{key}")
    elif is_model(value):
        for name, kind in typing.get_type_hints(type(value)).items():
            field, path = getattr(value, name), f"{where}.{name}".lstrip(".")
            if not fits(field, kind):
                yield f"{path}: {field!r} is not {kind}"
            yield from misfits(field, path)


def judge(ours):
    """Everything in which a dashboard is not as Grafana's schema wants it."""
    try:
        read = dashboard.Dashboard.from_json(ours)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"cannot be read: {error!r}"]
    found = [*compare(ours, json.loads(encoder.JSONEncoder().encode(read)), ""), *misfits(read, "")]
    for panel in read.panels or []:
        if not isinstance(panel, dashboard.RowPanel):
            # The SDK takes any panel and any query that it does not know as it is.
            if runtime.panelcfg_config(panel.type_val) is None:
                found.append(f"{panel.title}: Grafana has no panel '{panel.type_val}'")
            found += [f"{panel.title}: not a query for Prometheus" for target in panel.targets or []
                      if not isinstance(target, prometheus.Dataquery)]
    return found


class Grafana(unittest.TestCase):
    def test_every_dashboard_is_as_grafanas_schema_wants_it(self):
        self.assertTrue(DASHBOARDS)
        for path in DASHBOARDS:
            ours = json.loads(path.read_text())
            self.assertGreater(sum(panel["type"] != "row" for panel in ours["panels"]), 10)
            self.assertEqual(judge(ours), [], path.name)

    def test_the_schema_is_that_of_the_grafana_which_is_deployed(self):
        image = re.search(r"image: grafana/grafana:(\d+\.\d+)\.", (ROOT / "deploy/compose/compose.yml").read_text()).group(1)
        self.assertRegex(importlib.metadata.version("grafana-foundation-sdk"), rf"!{re.escape(image)}\.")

    def test_each_kind_of_mistake_is_found(self):
        good = json.loads(DASHBOARDS[0].read_text())
        index = next(i for i, panel in enumerate(good["panels"]) if panel["type"] == "timeseries")

        for change, message in (
                (lambda d, p, c: c.update(drawStyle="lines"), "draw_style: 'lines' is not"),
                (lambda d, p, c: c.update(lineWith=2), r"custom\.lineWith: no such field"),
                (lambda d, p, c: c.update(lineWidth="1"), "line_width: '1' is not"),
                (lambda d, p, c: c["stacking"].update(mode="on"), "mode: 'on' is not"),
                (lambda d, p, c: p["fieldConfig"]["defaults"]["color"].update(mode="rainbow"), "mode: 'rainbow' is not"),
                (lambda d, p, c: p["gridPos"].update(w=6.5), r"grid_pos\.w: 6\.5 is not"),
                (lambda d, p, c: p["options"]["legend"].update(displayMode="below"), "display_mode: 'below' is not"),
                (lambda d, p, c: p["options"].update(tooltip="multi"), r"options\.tooltip: 'multi' is read as"),
                (lambda d, p, c: p.update(options=3), "cannot be read"),
                (lambda d, p, c: p.update(type="timeserie"), "no panel 'timeserie'"),
                (lambda d, p, c: p["datasource"].update(type="influx"), "not a query for Prometheus"),
                (lambda d, p, c: p["targets"][0].update(expression="up"), r"targets\[0\]\.expression: no such field"),
                (lambda d, p, c: p["targets"][0].update(instant="no"), "instant: 'no' is not"),
                (lambda d, p, c: d.update(graphTooltip=3), "graph_tooltip: 3 is not"),
                (lambda d, p, c: d["templating"]["list"][1].update(refresh=True), "refresh: True is not"),
                (lambda d, p, c: d["templating"]["list"][1].update(type="label"), "type_val: 'label' is not"),
                (lambda d, p, c: d.update(panel=[]), "panel: no such field"),
                (lambda d, p, c: d["time"].update({"from": 0}), "from_val: 0 is not")):
            with self.subTest(message=message):
                bad = copy.deepcopy(good)
                panel = bad["panels"][index]
                change(bad, panel, panel["fieldConfig"]["defaults"]["custom"])
                self.assertRegex("\n".join(judge(bad)), message)


if __name__ == "__main__":
    unittest.main(verbosity=2)
