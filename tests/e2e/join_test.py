"""A worker joins over a link that takes longer to move the replica than the server keeps commits (tests/bench/join_bench.py has
the sizes of real models)."""

import pathlib
import statistics
import sys
import tempfile

import harness
import hosts

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))

import join_bench  # noqa: E402

COORDINATES = 4_000_000
ROUNDS_KEPT = 8  # as of a model of 67 M and more, at defaults


class Join(hosts.HostsTest):
    """The server's link has 100 Mbit/s: 1.28 s for the replica alone."""

    def check(self, paced):
        case = join_bench.Case("paced" if paced else "back", COORDINATES, 100, paced, before_s=8,
                               server_flags=("--catch-up-bytes", ROUNDS_KEPT * COORDINATES // 8))
        network = self.connect(join_bench.SERVER, *join_bench.WORKERS)
        join = join_bench.Join(network, pathlib.Path(tempfile.mkdtemp(prefix="run.", dir=self.folder)) / "run", case)
        report = join_bench.Report(as_json=False)
        join.print(report)
        join.check()
        return join, report

    @harness.timed
    def test_one_transfer_is_enough_while_rounds_fill_the_link(self):
        join, report = self.check(paced=False)
        self.assertGreater(len(join.during_s), ROUNDS_KEPT, "the transfer outlasts what is kept")
        self.assert_in_time(not report.missed, "see the figures above")

    @harness.timed
    def test_rounds_of_a_quarter_of_the_link_hardly_notice_a_newcomer(self):
        join, _ = self.check(paced=True)
        # With rounds this short, how long a program takes to start decides how far the open round is when it joins: it may wait
        # for all of the next one.
        before = statistics.median(join.before_s)
        most = join_bench.MEMBER_PACED * join.case.copy_s
        self.assert_in_time(join.transfers == 1 and join.lost == 0 and join.missed == 0, "see the figures above")
        self.assert_in_time(join.ready_s <= most and join.member_s <= most + before, "see the figures above")
        self.assert_in_time(statistics.median(join.during_s) <= join_bench.ROUND_PACED * before, "see the figures above")


if __name__ == "__main__":
    hosts.main()
