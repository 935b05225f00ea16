"""Rounds of several minibatches (docs/algorithms/local_steps.md): what they are of, what their commits say, the trials of Lever before
them, workers that die, come and are slow, and what travels."""

import unittest

import harness
from harness import OK, USAGE

WORKERS = "abc"


class LocalSteps(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c", "d")

    def run_once(self, *server_flags, rounds, worker_flags=()):
        self.start_server("--deadline", "off", "--direction", "lion", *server_flags, rounds=rounds, workers_min=3)
        workers = self.start_workers(WORKERS, *worker_flags)
        self.assert_all_end_well(workers.values())
        return self.rounds()

    def test_a_round_is_of_h_minibatches_and_its_commit_says_how_far_they_went(self):
        rounds = self.run_once("--rule", "fixed", "--schedule", "linear", "--stepsize", 0.01, "--local-steps", 4, rounds=20)
        total = 20 * 4
        for r, line in enumerate(rounds):
            self.assertEqual((line["kind"], line["data_step"], line["next_data_step"], line["minibatches"]),
                             ("step", 4 * r, 4 * (r + 1), 4 * (r + 1)))
            eta = [0.01 * (1 - (4 * r + h) / total) for h in (0, 3)]
            self.assertAlmostEqual(line["eta_first"] / eta[0], 1, delta=1e-6)
            self.assertAlmostEqual(line["eta_last"] / eta[1], 1, delta=1e-6)
            longest = 4 * (eta[0] + eta[1]) / 2
            self.assertAlmostEqual(line["decay_step"] / longest, 1, delta=1e-6)
            lengths = [worker["displacement_mean"][0] for worker in line["workers"]]
            self.assertEqual([worker["local_steps"] for worker in line["workers"]], [4, 4, 4])
            self.assertLessEqual(min(lengths), line["scales"][0] * (1 + 1e-6))
            self.assertLessEqual(line["scales"][0], max(lengths) * (1 + 1e-6))
            self.assertLessEqual(max(lengths), longest * (1 + 1e-5))
        self.assertLess(rounds[-1]["loss"], 0.9 * rounds[0]["loss"])

    def test_h_grows_as_its_schedule_says(self):
        rounds = self.run_once("--rule", "fixed", "--stepsize", 0.001, "--local-steps", "2,6@50", "--aggregate", "vote", rounds=16)
        steps = [line["local_steps"] for line in rounds]
        self.assertEqual(steps, sorted(steps))
        self.assertEqual(set(steps), {2, 6})
        self.assertAlmostEqual(2 * steps.count(2) / sum(steps), 0.5, delta=0.1)
        self.assertEqual([line["data_step"] for line in rounds], [sum(steps[:r]) for r in range(16)])

    def test_lever_tries_stepsizes_in_silent_rounds_that_move_nobody(self):
        rounds = self.run_once("--rule", "auto", "--local-steps", 16, rounds=60)
        race = [line for line in rounds if line["main_rounds"] == 0]
        main = rounds[len(race):]
        self.assertEqual((len(main), race[-1]["kind"]), (60, "rewind"))
        self.assertEqual({line["kind"] for line in race}, {"none", "rewind"})
        self.assertTrue(all(line["silent"] for line in race))
        self.assertFalse(any(line["silent"] for line in main))
        self.assertLessEqual(sum(line["local_steps"] for line in race), 60 * 16 // 4)
        # Every trial begins at x0 on the same minibatches.
        starts = [line["loss"] for line in race if line["data_step"] == 0]
        self.assertGreater(len(starts), 3)
        self.assertEqual(main[0]["data_step"], 0)
        self.assertGreater(len({line["eta_first"] for line in race}), 3)
        self.assertTrue(any(line["rho"] != 1 for line in main), "z moves the scale")
        self.assertLess(main[-1]["loss"], 0.5 * main[0]["loss"])
        self.assertIn("Lever chooses the stepsize, after a race", self.server.log())

    def test_a_worker_that_dies_and_comes_back_and_one_that_joins_leave_all_replicas_equal(self):
        self.start_server("--direction", "lion", "--rule", "fixed", "--stepsize", 0.001, "--local-steps", 8, rounds=harness.FOREVER,
                          workers_min=3)
        workers = self.start_workers(WORKERS, "--compute-ms", 4)
        self.wait_round(5)
        workers["c"].kill()
        self.wait_round(10)
        again = [self.start_worker(name, "--compute-ms", 4) for name in "cd"]
        self.wait_until("both vote", lambda: {w["name"] for w in self.rounds()[-1]["workers"]} == set("abcd"))
        self.end_run(workers["a"], workers["b"], *again)

    def test_a_slow_worker_takes_fewer_steps_and_counts(self):
        self.start_server("--direction", "lion", "--rule", "fixed", "--stepsize", 0.001, "--local-steps", 16, rounds=harness.FOREVER,
                          workers_min=3)
        workers = [self.start_worker("a", "--compute-ms", 5), self.start_worker("b", "--compute-ms", 5),
                   self.start_worker("c", "--compute-ms", 200)]

        def slow_one_counts():
            for line in self.rounds():
                steps = {w["name"]: w["local_steps"] for w in line["workers"]}
                if steps.get("c", 16) < 16 and steps.get("a") == 16:
                    return True
            return False
        self.wait_until("the slow worker stops early and is counted", slow_one_counts, timeout=120)
        self.end_run(*workers)

    def test_what_travels_falls_with_h(self):
        bits = {}
        for steps in (1, 16):
            self.start_server("--deadline", "off", "--rule", "fixed", "--stepsize", 0.001, "--local-steps", steps, "--aggregate", "vote",
                              rounds=harness.FOREVER, workers_min=3)
            workers = self.start_workers(WORKERS, "--coordinates", 400000)
            self.wait_round(12)
            status = self.status()
            bits[steps] = status["up_bits"], status["down_bits"]
            code, out, _ = self.ctl("status")
            self.assertEqual(code, OK)
            self.assertIn("a parameter and minibatch", out)
            self.end_run(*workers.values())
        for way in (0, 1):
            self.assertAlmostEqual(bits[1][way], 1, delta=0.1)
            self.assertAlmostEqual(bits[16][way], 1 / 16, delta=0.02)

    def test_what_does_not_go_with_local_steps_is_refused_by_name(self):
        for flags, words in ((("--rule", "alias"), "alias"), (("--direction", "adam"), "adam"), (("--dense", "*"), "--dense"), (("--clip", "norm"), "--clip norm"),
                             (("--error-feedback", "--direction", "signsgd", "--rule", "fixed"), "--error-feedback")):
            code, out, err = self.command("signvote-server", "--insecure", "--rounds", 50, "--local-steps", 4, *flags)
            self.assertEqual((code, out), (USAGE, ""), err)
            self.assertIn(words, err)
            self.assertIn("--local-steps 4", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
