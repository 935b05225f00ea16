"""Disks that fail, are full or become read-only under a journal or under a worker's checkpoints: no commit that was told is
lost, one error says what is to be done, and once that is done the run goes on.

That a full tmpfs does to a journal what failing_disk.cc does here shows e2e_journal_test.
"""

import errno
import os
import subprocess

from crashes import NAMES, CrashRun, harness
from harness import BAD_INPUT, BIN


def remount(folder, how):
    return subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], stderr=subprocess.DEVNULL).returncode == 0


def errors(process):
    return [line for line in process.log().splitlines() if " error " in line]


class JournalFails(CrashRun):
    def test_a_journal_that_cannot_be_written_tells_nothing_more_until_its_server_starts_again(self):
        switch = self.folder / "switch"
        failing = ("env", f"LD_PRELOAD={BIN / 'failing_disk.so'}", f"FAILING_DISK_FOLDER={self.journal_folder}",
                   f"FAILING_DISK_SWITCH={switch}")
        workers = []
        for what, error in (("write", errno.ENOSPC), ("write", errno.EROFS), ("sync", errno.EIO)):
            with self.subTest(what=what, error=errno.errorcode[error]):
                server = self.life(prefix=failing)
                workers = workers or [self.life_of_worker(name, "--compute-ms", 5) for name in NAMES]
                self.wait_round(3)
                fails = self.folder / "fails"
                fails.write_text(f"{what} {error}\n")
                fails.rename(switch)
                self.wait_until("the server is not ready any more", lambda: harness.http_get(server.http, "/readyz")[0] == 503)
                code, says = harness.http_get(server.http, "/readyz")
                for text in ("the journal cannot be written", str(self.journal_folder), os.strerror(error)):
                    self.assertIn(text, says)
                for worker in workers:
                    self.wait_until(f"{worker.name} is told", lambda: "journal cannot be written" in worker.log())
                    self.assertTrue(worker.alive, worker.name)
                self.assertEqual(len(errors(server)), 1, errors(server))
                for text in (str(self.journal_folder), os.strerror(error), "until its disk is mended and the server is started again"):
                    self.assertIn(text, errors(server)[0])
                server.kill()
                switch.unlink()
                self.server_died()
        self.life()
        self.wait_round(3)
        self.end_and_replay(workers)

    def life(self, **options):
        told = self.told
        server = self.life_of_server("--direction", "signum", "--deadline", "off", **options)
        if told:
            self.assertGreaterEqual(self.recovered(server), told, "commits that were told are lost")
        return server


class JournalsFolder(CrashRun):
    def refused(self, journal):
        code, out, err = self.command("signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http", "off", "--rounds", 1,
                                      "--journal", journal)
        self.assertEqual(code, BAD_INPUT, out + err)
        said = [line for line in err.splitlines() if " error " in line]
        self.assertEqual(len(said), 1, err)
        for text in (f"--journal: {journal}", "make its folder writable, with room in it, or give another one"):
            self.assertIn(text, said[0])
        return said[0]

    def accepted(self, journal):
        self.start_server("--journal", journal).kill()

    def test_a_full_disk_at_the_start(self):
        disk = self.small_disk("8m")
        self.assertIn(os.strerror(errno.ENOSPC), self.refused(disk / "journal"))
        self.assertTrue(remount(disk, "size=200m"))
        self.accepted(disk / "journal")

    def test_a_read_only_disk_at_the_start(self):
        disk = self.small_disk("200m")
        self.accepted(disk / "journal")
        for journal in (disk / "journal", disk / "another"):
            self.assertTrue(remount(disk, "ro"))
            self.assertIn(os.strerror(errno.EROFS), self.refused(journal))
            self.assertTrue(remount(disk, "rw"))
            self.accepted(journal)


class CheckpointsDisk(CrashRun):
    def test_a_checkpoint_that_a_disk_does_not_take_stops_nobody_and_the_former_one_stays(self):
        disk = self.small_disk("1m")
        self.life_of_server("--direction", "signum")
        workers = {name: self.life_of_worker(name, "--compute-ms", 5) for name in NAMES[1:]}
        mine, state = NAMES[0], disk / f"{NAMES[0]}.state"
        workers[mine] = self.life(disk)
        for error, fault, mend in ((errno.ENOSPC, lambda: harness.fill_disk(disk), lambda: (disk / "others").unlink()),
                                   (errno.EROFS, lambda: remount(disk, "ro"), lambda: remount(disk, "rw"))):
            with self.subTest(errno.errorcode[error]):
                self.wait_until("a checkpoint", state.exists)
                # A checkpoint that was being written may have left room, or have kept the disk as it was.
                def told():
                    fault()
                    return any("a checkpoint is not written" in line and os.strerror(error) in line and str(disk) in line
                               for line in errors(workers[mine]))
                self.wait_until("the worker tells", told)
                self.wait_round(len(self.rounds()) + 5)
                workers[mine].kill()
                self.assertTrue(state.exists())
                mend()
                written = state.stat().st_ino
                workers[mine] = self.life(disk)
                self.wait_until("it has joined", lambda: "goes on from a checkpoint" in workers[mine].log())
                self.wait_until("the next checkpoint", lambda: state.stat().st_ino != written)
        self.end_and_replay(workers.values())

    def life(self, disk):
        return self.life_of_worker(NAMES[0], "--compute-ms", 5, "--checkpoint", disk, "--checkpoint-every", 2)


if __name__ == "__main__":
    harness.run_tests_with_own_mounts()
