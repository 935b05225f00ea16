"""The stepsize is what algorithms.md says: every γ of a run recomputed from the logged scalars, by other code."""

import array
import math
import pathlib
import struct
import unittest

import harness


def fp32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def robust_mean(values):
    """docs/algorithms/README.md: clip to median ± 3·1.48·MAD, then the mean; with one or two values the plain mean."""
    values = [v for v in values if v is not None and math.isfinite(v)]
    if not values:
        return None
    if len(values) > 2:
        middle = median(values)
        width = 3 * 1.48 * median([abs(v - middle) for v in values])
        values = [min(max(v, middle - width), middle + width) for v in values]
    return math.fsum(values) / len(values)


def alias(rounds, x0_max_abs, f_min=0.0, resumed=None):
    """Yields γ_t of ALIAS, Option II with the same-minibatch probe (arXiv 2506.03725, Algorithm 2), for a whole run of so many
    rounds, of which each moved. `resumed`: the stepsize of the run that x_0 comes from."""
    start = min(8, max(1, len(rounds) // 20))
    eta, losses, f0, gamma, probed = 0.0, [], None, None, 0
    for t, line in enumerate(rounds):
        scalars = line["workers"]
        if t < start or not losses:
            loss = robust_mean([s["loss"] for s in scalars])
            losses += [loss] if loss is not None else []
        if t >= start and losses and f0 is None:
            f0 = math.fsum(losses) / len(losses)
            eta += (f0 - f_min) / resumed ** 2 if resumed else 0.0
        if gamma is None:
            gamma = fp32(1e-5 * max(1.0, x0_max_abs))
        else:
            change = robust_mean([s.get("probe_l1") for s in scalars])
            if change is not None:
                eta += (t - probed) * change / gamma  # ‖x_t − x_{t−1}‖_∞ = γ_{t−1}, as every step_scale is 1
                probed = t
            if eta > 0 and f0 is not None:
                gamma = fp32(math.sqrt((f0 - f_min) / eta))
        yield gamma


def robust_ratio(parts):
    """Σp/Σq as docs/algorithms/README.md has it: of more than two, those beyond the band are left out and weights capped."""
    parts = [(p, q) for p, q in parts if q > 0]
    if not parts:
        return None
    if len(parts) > 2:
        ratios = [p / q for p, q in parts]
        middle, cap = median(ratios), 3 * median([q for _, q in parts])
        width = 3 * 1.48 * median([abs(ratio - middle) for ratio in ratios])
        parts = [(ratio * min(q, cap), min(q, cap)) for ratio, (_, q) in zip(ratios, parts) if abs(ratio - middle) <= width]
    return math.fsum(p for p, _ in parts) / math.fsum(q for _, q in parts)


def lever(rounds, total):
    """Yields γ_t and ρ_t of phase B of Lever (docs/algorithms/lever.md) from the first main round's γ on, which is s_0."""
    h = min(max(total // 16, 30), max(75, total // 64))
    log_scale = math.log(rounds[0]["stepsize"])
    v, k, before = 0.0, 0, log_scale
    for t, line in enumerate(rounds):
        if h <= t and 4 * t < 3 * total:
            z = robust_ratio([(w["x0_inner"] / w["x0_distance"], math.sqrt(w["g_l2_squared"])) for w in line["workers"]])
            k += 1
            v = 0.97 * v + 0.03 * z * z
            unit = z / math.sqrt(v / (1 - 0.97 ** k))
            log_scale += min(4, len(line["workers"])) / (t + 1) * min(max(unit, -2), 2)
        yield math.exp(log_scale) * (1 - t / total), math.exp(log_scale - before)
        before = log_scale


def max_abs(path):
    """The largest absolute value in a safetensors file of fp32."""
    data = pathlib.Path(path).read_bytes()
    header, = struct.unpack("<Q", data[:8])
    return max(map(abs, array.array("f", data[8 + header:])))


class Stepsize(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c")

    def run_once(self, *worker_flags, rounds=60, scale=1, server_flags=()):
        self.start_server("--deadline", "off", *server_flags, rounds=rounds, workers_min=3)
        workers = self.start_workers("abc", "--scale", scale, *worker_flags)
        self.assert_all_end_well(workers.values())
        return self.rounds()

    def assert_follows(self, rounds, expected):
        for line, gamma in zip(rounds, expected, strict=True):
            # One rounding to fp32 of a double computed in another order of additions: one unit in the last place.
            self.assertLessEqual(abs(self.stepsize(line) - gamma), 2 ** -23 * gamma, f"round {line['round']}")

    def test_every_stepsize_of_a_run_can_be_recomputed_from_its_log(self):
        rounds = self.run_once()
        self.assertEqual(len(rounds), 60)
        self.assert_follows(rounds, alias(rounds, self.report("a")["x0_max_abs"]))
        self.assertGreater(len({self.stepsize(line) for line in rounds}), 50, "the rule adapts")

    def test_a_run_from_an_export_goes_on_at_its_stepsize(self):
        export = self.folder / "model.safetensors"
        f_min = -2  # training takes but a part of what lies above the bound, as with a language model
        flags = (f"--alias-f-min={f_min}",)
        before = self.stepsize(self.run_once(server_flags=("--export", export, *flags))[-1])
        rounds = self.run_once(rounds=100, server_flags=("--init", export, *flags))
        self.assert_follows(rounds, alias(rounds, max_abs(export), f_min, before))
        gammas = [self.stepsize(line) for line in rounds]
        self.assertEqual(len(set(gammas[:5])), 1, "it starts at γ_0")
        self.assertLessEqual(max(gammas), before)
        self.assertGreater(max(gammas), 0.8 * before, "and goes on where the other run stood")
        # Without what the file says the same model gets the steps of one that is not trained.
        anew = self.run_once(rounds=100, server_flags=("--init", export, "--alias-eta0", 0, *flags))
        self.assertGreater(max(map(self.stepsize, anew)), 2 * before)

    def test_without_a_worker_that_probes_a_person_is_told(self):
        self.start_server("--deadline", "off", rounds=harness.FOREVER, workers_min=1)
        worker = self.start_worker("a", "--random-ballots")
        said = "no worker's probe has come for 8 rounds"
        warning = self.wait_until("the status warns", lambda: self.status()["stepsize_warning"])
        self.assertIn(said, warning)
        self.assertIn("let a worker join that probes", warning)
        self.assertIn("warning   " + said, self.ctl("status")[1])
        self.wait_until("the log warns", lambda: said in self.server.log())
        self.wait_round(len(self.rounds()) + 10)
        self.assertEqual(self.server.log().count(said), 1)
        self.assertEqual(len({self.stepsize(line) for line in self.rounds()}), 1)
        self.end_run(worker)

    def test_stretching_the_problem_by_128_stretches_every_stepsize_by_exactly_128(self):
        plain = [self.stepsize(line) for line in self.run_once(scale=1)]
        stretched = [self.stepsize(line) for line in self.run_once(scale=128)]
        self.assertEqual(stretched, [128 * gamma for gamma in plain])

    def test_lever_races_from_the_start_again_and_again_and_its_run_follows_the_formula(self):
        rounds = self.run_once(rounds=320, server_flags=("--rule", "lever", "--lever-race", "on"))
        race = [line for line in rounds if line["main_rounds"] == 0]
        main = rounds[len(race):]
        self.assertEqual(len(main), 320)
        self.assertLessEqual(len(race), 80)
        self.assertEqual(race[-1]["kind"], "rewind")
        step = 0
        for line in race:
            self.assertEqual(line["data_step"], step, f"round {line['round']} replays the trials' minibatches")
            step = 0 if line["kind"] == "rewind" else step + 1
        self.assertEqual(main[0]["data_step"], 0)
        # All trials begin at the same parameters, so that their first losses are the same.
        first = [[w["loss"] for w in line["workers"]] for line in race + main[:1] if line["data_step"] == 0]
        self.assertGreater(len(first), 4)
        self.assertEqual(first, [first[0]] * len(first))
        moved = 0
        for line, (gamma, rho) in zip(main, lever(main, 320), strict=True):
            self.assertAlmostEqual(self.stepsize(line) / gamma, 1, delta=1e-5, msg=f"round {line['round']}")
            self.assertAlmostEqual(line["rho"], rho, delta=1e-6, msg=f"round {line['round']}")
            moved += line["rho"] != 1
        self.assertGreater(moved, 150)

    def test_the_default_is_alias_in_a_short_run_and_lever_in_a_longer_one_and_the_log_says_which(self):
        rounds = self.run_once(server_flags=("--rule", "auto"))
        self.assert_follows(rounds, alias(rounds, self.report("a")["x0_max_abs"]))
        self.assertIn("60 main rounds, fewer than 640: ALIAS chooses the stepsize", self.server.log())
        self.start_server("--rule", "auto", rounds=harness.FOREVER)
        worker = self.start_worker("a")
        self.wait_round(3)
        self.assertIn("Lever chooses the stepsize, after a race", self.server.log())
        self.assertEqual(self.status()["rule"], "lever")
        self.assertEqual({line["main_rounds"] for line in self.rounds()[:3]}, {0})
        self.end_run(worker)

    def test_a_run_of_unknown_length_goes_on_in_legs_until_it_is_stopped(self):
        self.start_server("--rule", "lever", "--length-unknown", "--lever-race", "off", "--lever-start", 0.01, rounds=None)
        worker = self.start_worker("a")
        self.wait_round(1002)
        self.assertEqual(self.status().get("main_rounds", 0), 0, "nobody knows")
        self.end_run(worker)
        rounds = self.rounds()
        first, last, next_leg = self.stepsize(rounds[0]), self.stepsize(rounds[999]), self.stepsize(rounds[1000])
        # Each leg comes down to nothing by a line; the next one begins where s stood.
        self.assertAlmostEqual(next_leg / (1000 * last), 1, delta=1e-5)
        self.assertAlmostEqual(self.stepsize(rounds[1001]) / next_leg, 1999 / 2000, delta=1e-6)
        self.assertGreater(first, 0)

    def test_the_same_seeds_give_the_same_run(self):
        first = self.run_once(rounds=20)
        digest = self.report("a")["digest"]
        second = self.run_once(rounds=20)
        self.assertEqual([self.stepsize(r) for r in first], [self.stepsize(r) for r in second])
        self.assertEqual(self.report("a")["digest"], digest)

    def test_a_fixed_rule_follows_its_schedule(self):
        self.start_server("--rule", "fixed", "--stepsize", 0.5, "--schedule", "linear", rounds=10, workers_min=1)
        self.assert_all_end_well([self.start_worker("a")])
        gammas = [self.stepsize(line) for line in self.rounds()]
        self.assertEqual(gammas, [fp32(0.5 * (1 - t / 10)) for t in range(10)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
