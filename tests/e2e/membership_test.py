"""Who takes part: joining, dying, falling silent, coming back, leaving, and what the others pay for it."""

import signal
import statistics
import time
import unittest

import harness
from harness import FOREVER, OK, REFUSED, UNAVAILABLE, WAIT_TIMEOUT, timed

# What a member's death may cost the others beyond a normal round, at default settings.
DEATH_SECONDS_MAX = 1.5
REJOIN_SECONDS_MAX = 3.0


class Membership(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c", "d")

    def commit_times(self):
        return [r["unix_time"] for r in self.rounds()]

    def normal_gap(self, until):
        times = self.commit_times()[:until]
        return statistics.median(b - a for a, b in zip(times, times[1:]))

    def cost_after(self, moment):
        """Seconds from `moment` to the next commit, and the longest gap between two commits from then on."""
        times = [t for t in self.commit_times() if t > moment]
        self.assertTrue(times, "no commit after the event")
        return max([times[0] - moment] + [b - a for a, b in zip(times, times[1:])])

    def test_three_workers_finish_with_equal_replicas(self):
        self.start_server("--deadline", "off", rounds=30, workers_min=3)
        workers = self.start_workers("abc")
        self.assert_all_end_well(workers.values())
        rounds = self.rounds()
        self.assertEqual([r["round"] for r in rounds], list(range(30)))
        self.assertTrue(all(len(r["voters"]) == 3 for r in rounds), "every round had all votes")
        self.assertLess(rounds[-1]["loss"], rounds[0]["loss"])

    def test_one_worker_is_a_legal_number_of_workers(self):
        self.start_server(rounds=10)
        self.assert_all_end_well([self.start_worker("a")])

    def votes_from(self, name, first):
        return any(name in r["voters"] for r in self.rounds()[first:])

    @timed
    def test_a_late_worker_gets_the_replica_and_votes(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(20)
        workers["c"] = self.start_worker("c", "--compute-ms", 20)
        self.wait_until("c votes", lambda: self.votes_from("c", 20))
        self.wait_round(len(self.rounds()) + 20)
        self.end_run(*workers.values())
        voters = [r["voters"] for r in self.rounds()]
        first = next(k for k, names in enumerate(voters) if "c" in names)
        self.assertGreaterEqual(first, 20)
        self.assert_in_time(all(len(names) >= 2 for names in voters), "somebody was left out meanwhile")
        self.assert_in_time(len(voters[-1]) == 3, "somebody was left out at the end")

    @timed
    def test_a_killed_worker_costs_the_others_at_most_a_deadline(self):
        self.start_server(rounds=150, workers_min=3)
        workers = self.start_workers("abc", "--compute-ms", 20)
        self.wait_round(50)
        workers["b"].kill()
        killed = time.time()
        survivors = [workers["a"], workers["c"]]
        pids = [p.pid for p in survivors]
        self.assert_all_end_well(survivors)
        self.assertEqual(pids, [p.pid for p in survivors])
        self.assertEqual(self.report("a")["reconnects"], 0)
        cost, normal = self.cost_after(killed), self.normal_gap(50)
        self.assert_in_time(cost <= DEATH_SECONDS_MAX + normal, f"a death cost {cost} s, a round {normal} s")

    @timed
    def test_a_worker_started_again_is_a_member_within_three_seconds(self):
        self.start_server(rounds=FOREVER, workers_min=3)
        workers = self.start_workers("abc", "--compute-ms", 20)
        self.wait_round(30)
        share = self.worker_status("b")["share"]
        workers["b"].kill()
        self.wait_until("b is lost", lambda: not self.worker_status("b")["connected"])
        done = len(self.rounds())
        workers["b"] = self.start_worker("b", "--compute-ms", 20)
        self.wait_until("b votes again", lambda: self.votes_from("b", done + 1))
        again = self.worker_status("b")
        self.assertEqual(again["incarnation"], 2)
        self.assertEqual(again["share"], share, "its share was reserved for its name")
        self.assertIsNotNone(again["joined_seconds"])
        self.end_run(*workers.values())
        self.assert_in_time(again["joined_seconds"] <= REJOIN_SECONDS_MAX, f"joined after {again['joined_seconds']} s")

    @timed
    def test_a_silent_worker_becomes_an_observer_and_a_member_again(self):
        self.start_server(rounds=FOREVER, workers_min=3)
        workers = self.start_workers("abc", "--compute-ms", 20)
        self.wait_round(40)
        harness.stop(workers["b"])
        stopped = time.time()
        self.wait_until("b is an observer", lambda: self.worker_status("b")["role"] == "observer")
        observed = [e["round"] for e in self.events("observer") if e["worker"] == "b"][0]
        # It may have been stopped within a ballot, whose chunks are counted: without its scalars that round is none of its own.
        last_ballot = max(r["round"] for r in self.rounds() if "b" in [w["name"] for w in r["workers"]])
        self.assertEqual(observed - last_ballot, 6, "behind the commit of the fifth round without its ballot")
        done = len(self.rounds())
        self.wait_round(done + 20)
        cost, normal = self.cost_after(stopped), self.normal_gap(40)
        # As an observer nobody waits for it: rounds are as fast as before.
        times = self.commit_times()[done + 1:done + 20]
        without = statistics.median(b - a for a, b in zip(times, times[1:]))
        harness.cont(workers["b"])
        done = len(self.rounds())
        self.wait_until("b votes again", lambda: self.votes_from("b", done))
        self.wait_until("b is a member again", lambda: self.worker_status("b")["role"] == "member")
        self.end_run(*workers.values())
        self.assert_in_time(cost <= DEATH_SECONDS_MAX + normal, f"silence cost {cost} s, a round {normal} s")
        self.assert_in_time(without < normal + 0.25, f"a round took {normal} s before and {without} s with the observer")

    def test_the_run_outlives_all_but_one(self):
        self.start_server(rounds=100, workers_min=3)
        workers = self.start_workers("abc", "--compute-ms", 20)
        self.wait_round(20)
        workers["a"].kill()
        workers["b"].kill()
        self.assert_all_end_well([workers["c"]])
        self.assertEqual(self.rounds()[-1]["voters"], ["c"])

    def test_everybody_gone_the_run_waits_and_goes_on_with_a_newcomer(self):
        self.start_server(rounds=60, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(20)
        workers["a"].kill()
        workers["b"].kill()
        self.wait_until("both are lost", lambda: not any(w["connected"] for w in self.status()["workers"]))
        self.assert_all_end_well([self.start_worker("d")])

    def test_a_server_without_workers_gives_up(self):
        self.start_server("--wait-timeout", 1)
        self.wait_end(20, expected=WAIT_TIMEOUT)

    def test_a_drained_worker_leaves_in_good_order(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(20)
        code, _, err = self.ctl("drain", "b")
        self.assertEqual(code, OK, err)
        self.assert_exit(workers["b"], OK)
        self.assertEqual(self.report("b")["outcome"], "drained")
        self.wait_round(len(self.rounds()) + 20)
        self.end_run(workers["a"])

    def test_sigterm_drains_a_worker(self):
        self.start_server(rounds=200, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(20)
        workers["b"].signal(signal.SIGTERM)
        self.assert_exit(workers["b"], OK)
        self.assert_all_end_well([workers["a"]])

    def test_an_evicted_name_is_refused_for_the_rest_of_the_run(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(10)
        code, _, err = self.ctl("evict", "b")
        self.assertEqual(code, OK, err)
        self.assert_exit(workers["b"], REFUSED)
        again = self.start_worker("b")
        self.assert_exit(again, REFUSED)
        self.assertIn("evicted", again.log())
        self.wait_round(len(self.rounds()) + 20)
        self.end_run(workers["a"])

    def test_a_paused_run_commits_nothing_until_it_is_resumed(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(10)
        self.pause()
        done = len(self.rounds())
        time.sleep(0.5)
        self.assertEqual(len(self.rounds()), done)
        self.assertEqual(self.ctl("resume")[0], OK)
        self.wait_round(done + 20)
        self.end_run(*workers.values())

    def test_workers_look_for_a_lost_server_and_give_up(self):
        self.start_server(rounds=1000, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20, "--server-timeout", 2)
        self.wait_round(10)
        self.server.kill()
        begin = time.monotonic()
        for process in workers.values():
            self.assert_exit(process, UNAVAILABLE, timeout=15)
        self.assertGreater(time.monotonic() - begin, 1.5)

    def test_sigterm_ends_the_server_in_good_order(self):
        export = self.folder / "model.safetensors"
        self.start_server("--export", export, rounds=1000, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20, "--server-timeout", 3)
        self.wait_round(10)
        self.server.signal(signal.SIGTERM)
        self.wait_end(30)
        self.assertTrue(export.exists(), "the export was written")
        for process in workers.values():
            self.assertIn(process.wait(30), (OK, UNAVAILABLE))


if __name__ == "__main__":
    unittest.main(verbosity=2)
