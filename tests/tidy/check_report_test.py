"""scripts/lib/check_report.py passes a good report of the demo, and names what is wrong with any other."""

import argparse
import copy
import importlib.util
import pathlib
import unittest

PATH = pathlib.Path(__file__).resolve().parents[2] / "scripts/lib/check_report.py"
SPEC = importlib.util.spec_from_file_location("check_report", PATH)
check_report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_report)

OPTIONS = argparse.Namespace(rounds=60, coordinates_min=800_000, fall_min=0.5, seconds_max=300)
GOOD = {
    "rounds": 60, "coordinates": 857_216, "seconds": 40.0,
    "loss": {"first": 5.6, "last": 2.4, "held_out_first": 5.5, "held_out_last": 2.6},
    "wire": {"up_bytes_per_round": 108_249, "down_bytes_per_round": 108_315, "fp32_bytes_per_round": 4 * 857_216},
    "members": [{"round": 0, "members": ["worker-1", "worker-2", "worker-3"]}],
    "events": [{"kind": "joined", "worker": "worker-1", "round": 0, "seconds_to_next_commit": 0.4},
               {"kind": "joined", "worker": "worker-4", "round": 21, "seconds_to_next_commit": 0.4},
               {"kind": "worker_killed", "worker": "worker-2", "round": 30, "seconds_to_next_commit": 0.5,
                "normal_round_seconds": 0.3}],
    "digests": {"server": "ab", "worker-1": "ab", "worker-3": "ab", "worker-4": "ab"},
    "replicas_equal": True,
    "time_split": {"round": 0.3},
}


class CheckReportTest(unittest.TestCase):
    def found(self, change=lambda report: None):
        report = copy.deepcopy(GOOD)
        change(report)
        return list(check_report.findings(report, OPTIONS))

    def test_a_good_report_has_no_findings(self):
        self.assertEqual(self.found(), [])

    def test_each_fault_is_named(self):
        def put(*keys, value):
            def change(report):
                for key in keys[:-1]:
                    report = report[key]
                report[keys[-1]] = value
            return change

        for change, text in (
                (put("rounds", value=59), "asked for 60"),
                (put("coordinates", value=1000), "coordinates: 1000"),
                (put("seconds", value=301.0), "seconds: 301"),
                (put("seconds", value=None), "seconds: None is not a number"),
                (put("seconds", value=float("nan")), "seconds: nan is not a number"),
                (put("loss", "held_out_last", value=5.2), "fell by 0.300"),
                (put("wire", "up_bytes_per_round", value=110_000), "wire, up"),
                (put("wire", "down_bytes_per_round", value=100_000), "wire, down"),
                (put("wire", "fp32_bytes_per_round", value=1), "4 bytes a coordinate"),
                (put("members", value={}), "is not a list"),
                (put("replicas_equal", value=False), "replicas differ"),
                (put("digests", "server", value="cd"), "replicas differ"),
                (put("digests", value={"server": "ab", "worker-4": "ab"}), "at least two workers"),
                (put("digests", "worker-2", value="ab"), "the killed worker worker-2 has a digest"),
                (put("events", value=GOOD["events"][:2]), "no worker_killed"),
                (put("events", value=GOOD["events"][2:]), "no joined"),
                (put("events", 1, "round", value=0), "no worker joined during the run"),
                (put("events", 2, "seconds_to_next_commit", value=1.9), "the kill cost 1.90 s"),
                (put("events", 2, "seconds_to_next_commit", value=None), "worker_killed has no seconds_to_next_commit")):
            found = self.found(change)
            self.assertTrue(any(text in line for line in found), f"{text}: {found}")


if __name__ == "__main__":
    unittest.main()
