"""Disks, limits and folders that fail while a run goes on: nothing that was trained is lost.

Every row of the tables in docs/bad_input.md, "While a run goes on", at a server and at a worker: what is written meanwhile is
left out, the run goes on, and what is written at the end is held until it can be, or until it was saved elsewhere.

A disk is a tmpfs in a mount namespace of this program's own. Where the machine allows none, the rows that need one are left
out, and the test ends as skipped.
"""

import pathlib
import re
import resource
import shutil
import signal
import subprocess
import unittest

import harness
from harness import BAD_INPUT, BIN, FOREVER, NO_MEMORY, OK, REFUSED, metadata, values

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = "docs/bad_input.md"
DISK_BYTES = 4 << 20
FILE_BYTES_MAX = 64 << 10  # less than a model, more than a program says
MIB = 1 << 20


def table(head):
    """{row: cells} of the page's table whose first column is called `head`."""
    text = re.search(rf"(?m)^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / PAGE).read_text()).group(1)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    return {cells[0]: [cell.strip("` |") for cell in cells[1:]] for cells in rows}


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


class Fault:
    """Something that happens to the folder or to the process that writes there, and its mending."""

    needs_mounts = False
    log_lies_there = True  # a log that is open may keep a disk from becoming what the fault makes of it

    def __init__(self, test):
        self.test = test
        self.folder = test.folder / "shelf"
        self.folder.mkdir()

    def begin(self):
        """Before the programs start."""

    def strike(self, process):
        raise NotImplementedError

    def press(self):
        """While the test waits for what the fault does."""

    def mend(self, process):
        raise NotImplementedError


class FullDisk(Fault):
    needs_mounts = True

    def begin(self):
        mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", self.folder)

    def strike(self, process):
        self.press()

    def press(self):
        # A copy that was being written may have made room since.
        try:
            with open(self.folder / "filling", "ab", buffering=0) as filling:
                while filling.write(b"x" * 4096):
                    pass
        except OSError:
            pass  # it is full

    def mend(self, process):
        (self.folder / "filling").unlink()


class ReadOnly(Fault):
    needs_mounts = True
    log_lies_there = False

    def begin(self):
        mount("-t", "tmpfs", "tmpfs", self.folder)

    def strike(self, process):
        # A copy that is being written keeps the disk as it is for a moment.
        self.test.wait_until("the disk is read-only", lambda: subprocess.run(
            ["mount", "-o", "remount,ro", str(self.folder)], stderr=subprocess.DEVNULL).returncode == 0)

    def mend(self, process):
        mount("-o", "remount,rw", self.folder)


class FolderGone(Fault):
    def strike(self, process):
        self.folder.rename(self.folder.with_suffix(".gone"))

    def mend(self, process):
        self.folder.mkdir()


class FileSizeLimit(Fault):
    def strike(self, process):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, resource.RLIM_INFINITY))

    def mend(self, process):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class FewDescriptors(Fault):
    def strike(self, process):
        self.before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (0, self.before[1]))

    def mend(self, process):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, self.before)


FAULTS = {"full-disk": FullDisk, "file-size-limit": FileSizeLimit, "few-descriptors": FewDescriptors, "read-only": ReadOnly,
          "folder-gone": FolderGone}
LOG_SAYS = {"left out": "a log cannot be written; the run goes on without it",
            "the old file stays": "a log cannot be opened again; the old file stays in use"}
NOT_COPIED = "a copy of the model is not written"


class WhileARunGoesOn(harness.ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.rows = table("fault")
        self.certify("a")

    def run(self, result=None):
        self.mounted = None
        try:
            return super().run(result)
        finally:
            if self.mounted is not None:
                subprocess.run(["umount", "--lazy", str(self.mounted)], check=False, stderr=subprocess.DEVNULL)
                shutil.rmtree(self.folder, ignore_errors=True)

    def fault(self, row):
        kind = FAULTS[row]
        if kind.needs_mounts:
            if not harness.has_own_mounts():
                self.skipTest("this machine lets the test mount no disk of its own")
            self.mounted = self.folder / "shelf"
        fault = kind(self)
        fault.begin()
        return fault

    def log_there(self, fault, beside):
        """The path of a log that lies where the fault happens, unless it may not; as large as a file may become."""
        if not fault.log_lies_there:
            return beside
        path = fault.folder / "log.jsonl"
        path.write_text('{"kind": "before"}\n' * (FILE_BYTES_MAX // 19 + 1))
        return path

    def told(self, process, *texts, meanwhile=lambda: None):
        def line():
            meanwhile()
            return any(all(text in one for text in texts) for one in process.log().splitlines())
        self.wait_until(f"{process.name} says {texts}", line)

    def strike(self, fault, process, row):
        """The fault happens; what is written meanwhile is left out and told, and nothing else happens."""
        log, error = self.rows[row][1], self.rows[row][3]
        fault.strike(process)
        self.told(process, " error ", NOT_COPIED, error, meanwhile=fault.press)
        if log == "the old file stays":
            process.signal(signal.SIGUSR2)
        if log in LOG_SAYS:
            self.told(process, " error ", LOG_SAYS[log], error)
        self.wait_round(len(self.rounds()) + 3)
        self.assertTrue(process.alive)
        return error

    def begin_log_anew(self, process, row):
        if self.rows[row][1] == "left out":
            process.signal(signal.SIGUSR2)
            self.told(process, "log opened again")

    # ---- a server ---------------------------------------------------------------------------------------------------

    def server_meets(self, row):
        fault = self.fault(row)
        events = self.folder / f"events.{len(self.processes)}.jsonl"
        log = self.log_there(fault, events)
        if log != events:
            events.symlink_to(log)
        model = fault.folder / "model.safetensors"
        self.start_server("--export", model, "--export-every", 10, "--digest-every", 1, rounds=FOREVER)
        self.start_worker("a", "--compute-ms", 20, "--server-timeout", 1)
        self.told(self.server, "a copy of the model is written")
        error = self.strike(fault, self.server, row)
        if row == "few-descriptors":  # nobody is let in
            fault.mend(self.server)
            self.begin_log_anew(self.server, row)
            self.pause()
            fault.strike(self.server)
        else:
            self.pause()
        rounds = len(self.rounds())
        self.server.signal(signal.SIGTERM)
        self.told(self.server, " error ", "the model is not written: it is held and tried again", error)
        if row != "few-descriptors":
            elsewhere = self.folder / "elsewhere.safetensors"
            code, out, err = self.ctl("export", elsewhere)
            self.assertEqual(code, OK, out + err)
            self.assertEqual(metadata(elsewhere)["signvote.round"], str(rounds))
        if row in ("full-disk", "read-only", "folder-gone"):  # not of a process, but of the place
            code, out, err = self.ctl("export", fault.folder / "operator.safetensors")
            self.assertEqual((code, err.count("\n")), (BAD_INPUT, 1), out + err)
            self.assertIn(error, err)
        fault.mend(self.server)
        self.server.signal(signal.SIGUSR1)
        self.wait_end()
        self.assertEqual(metadata(model)["signvote.round"], str(rounds))
        self.assertEqual(list(fault.folder.glob("*.tmp")), [])
        if row != "few-descriptors":
            self.assertEqual(values(model), values(elsewhere))

    def test_a_server_meets_a_full_disk(self):
        self.server_meets("full-disk")

    def test_a_server_meets_a_file_size_limit(self):
        self.server_meets("file-size-limit")

    def test_a_server_meets_a_lack_of_descriptors(self):
        self.server_meets("few-descriptors")

    def test_a_server_meets_a_disk_that_becomes_read_only(self):
        self.server_meets("read-only")

    def test_a_server_meets_a_folder_that_goes(self):
        self.server_meets("folder-gone")

    # ---- a worker ---------------------------------------------------------------------------------------------------

    def corpus(self):
        path = self.folder / "corpus.txt"
        path.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(250) for b in range(100)))
        return path

    def worker(self, *flags, prefix=(), model="micro"):
        return self.start("a", [*prefix, BIN / "signvote-worker", *self.worker_flags("a"), "--model", model, "--data", self.corpus(),
                                "--batch", 2, "--sequence", 32, "--threads", 1, "--eval", "off", *flags])

    def worker_meets(self, row):
        if not harness.has_torch():
            self.skipTest("needs LibTorch")
        fault = self.fault(row)
        self.start_server("--digest-every", 1, rounds=FOREVER)
        replica = fault.folder / "a.safetensors"
        worker = self.worker("--save", replica, "--save-every", 10, "--round-log",
                             self.log_there(fault, self.folder / "a.jsonl"))
        self.told(worker, "a copy of the model is written")
        error = self.strike(fault, worker, row)
        self.begin_log_anew_where_it_can_be(fault, worker, row)
        self.pause()
        rounds = len(self.rounds())
        known = self.wait_until("its digest is known", lambda: {
            e["digest"] for e in self.events("digest") if e.get("digest_round") == rounds})
        worker.signal(signal.SIGTERM)
        self.told(worker, " error ", "the replica is not saved: it is held and tried again", error)
        # It has left: nobody waits for it.
        self.wait_until("it has left", lambda: self.events("left"))
        fault.mend(worker)
        worker.signal(signal.SIGUSR1)
        self.assert_exit(worker, OK)
        said = metadata(replica)
        self.assertEqual((said["signvote.round"], {said["signvote.digest"]}), (str(rounds), known))
        self.assertEqual(list(fault.folder.glob("*.tmp")), [])

    def begin_log_anew_where_it_can_be(self, fault, worker, row):
        """A log that failed is begun anew while the run goes on, between two strikes."""
        if self.rows[row][1] != "left out":
            return
        fault.mend(worker)
        self.begin_log_anew(worker, row)
        fault.strike(worker)

    def test_a_worker_meets_a_full_disk(self):
        self.worker_meets("full-disk")

    def test_a_worker_meets_a_file_size_limit(self):
        self.worker_meets("file-size-limit")

    def test_a_worker_meets_a_lack_of_descriptors(self):
        self.worker_meets("few-descriptors")

    def test_a_worker_meets_a_disk_that_becomes_read_only(self):
        self.worker_meets("read-only")

    def test_a_worker_meets_a_folder_that_goes(self):
        self.worker_meets("folder-gone")

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_a_replica_and_a_report_that_are_given_up_are_told_with_the_exit_code(self):
        fault = self.fault("folder-gone")
        self.start_server(rounds=FOREVER)
        worker = self.worker("--save", fault.folder / "a", "--report", fault.folder / "a.json", "--linger-save", 0)
        self.wait_round(3)
        fault.strike(worker)
        worker.signal(signal.SIGTERM)
        self.assert_exit(worker, BAD_INPUT)
        self.assertRegex(worker.log(), r" error the report is not written .*No such file.* exit_code=3")
        self.assertRegex(worker.log().splitlines()[-1], r" error .*--save: the replica of round \d+ is not saved: .*No such file")

    def test_what_lies_on_a_read_only_disk_is_refused_before_the_run(self):
        fault = self.fault("read-only")
        fault.strike(None)
        server = ["--insecure", "--listen", "127.0.0.1:0", "--http", "off", "--rounds", 3]
        cases = [("signvote-server", server, flag) for flag in ("--export", "--round-log", "--event-log", "--port-file")]
        if harness.has_torch():
            worker = ["--insecure", "--server", "127.0.0.1:9", "--name", "a", "--model", "micro", "--data", self.corpus()]
            cases += [("signvote-worker", worker, flag) for flag in ("--save", "--report", "--round-log")]
        for program, flags, flag in cases:
            with self.subTest(program=program, flag=flag):
                path = fault.folder / "file"
                code, out, err = self.command(program, *flags, flag, path)
                self.assertEqual(code, BAD_INPUT, out + err)
                said = [line for line in err.splitlines() if " error " in line]
                self.assertEqual(len(said), 1, err)
                self.assertIn(str(path), said[0])
                self.assertIn("Read-only file system", said[0])

    # ---- memory -----------------------------------------------------------------------------------------------------

    def message(self, row):
        return table("memory")[row][-1]

    def test_a_model_that_does_not_fit_the_server_costs_its_worker_and_not_the_server(self):
        self.start_server(rounds=FOREVER, prefix=["prlimit", f"--as={6000 * MIB}"])
        worker = self.start_worker("a", "--coordinates", 1_200_000_000, "--random-ballots", "--no-replica")
        self.assert_exit(worker, REFUSED)
        self.assertIn(self.message("server"), worker.log())
        self.start_worker("a", "--server-timeout", 1)
        self.wait_round(3)
        self.server.signal(signal.SIGTERM)
        self.wait_end()

    def test_a_copy_for_which_there_is_no_memory_is_left_out_and_the_model_written_at_the_end(self):
        model = self.folder / "model.safetensors"
        self.start_server("--export", model, "--rule", "fixed", "--stepsize", 0.001, "--workers-max", 2, rounds=FOREVER)
        self.start_worker("a", "--coordinates", 32_000_000, "--random-ballots", "--compute-ms", 20, "--server-timeout", 1)
        self.wait_round(20)
        pages = int(pathlib.Path(f"/proc/{self.server.pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 40 * MIB  # a copy takes 122
        resource.prlimit(self.server.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        self.server.signal(signal.SIGUSR1)
        self.told(self.server, " error ", NOT_COPIED, self.message("copy"))
        self.wait_round(len(self.rounds()) + 5)
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        self.assertEqual(metadata(model)["signvote.round"], str(len(self.rounds())))

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_a_model_that_does_not_fit_the_worker_is_told_with_bytes_and_remedy(self):
        self.start_server(rounds=FOREVER)
        # Of which the program itself has some hundreds; parameters and gradients would take 2807.
        worker = self.worker(model="350m", prefix=["prlimit", f"--as={2800 * MIB}"])
        self.assert_exit(worker, NO_MEMORY)
        self.assertRegex(worker.log().splitlines()[-1],
                         r"a worker of a model of \d+ coordinates needs \d+ MiB and \d+ MiB are left \(.*ulimit -v\).*--model")
        self.assertIn(self.message("worker"), worker.log())

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_a_run_that_needs_more_than_the_model_is_told_with_all_its_parts(self):
        self.start_server(rounds=FOREVER)
        coordinates = 22_404_608  # of the model tiny: docs/models.md
        worker = self.worker(model="tiny")
        self.told(worker, " joined ")
        pages = int(pathlib.Path(f"/proc/{worker.pid}/statm").read_text().split()[0])
        worker.kill()
        # Of the 12 bytes a coordinate beside parameters and gradient (momentum, probe) most are missing.
        limit = pages * resource.getpagesize() - 9 * coordinates
        worker = self.worker("--save", self.folder / "a.safetensors", prefix=["prlimit", f"--as={limit}"], model="tiny")
        self.assert_exit(worker, NO_MEMORY)
        said = worker.log().splitlines()[-1]
        for part in (f"parameters 86 MiB ({4 * coordinates} bytes)", "for the probe 171 MiB", "the direction's state m 86 MiB",
                     "ballot and verdicts", "--rule fixed at the server", self.message("worker")):
            self.assertIn(part, said)
        self.assertFalse((self.folder / "a.safetensors").exists(), "it never was a member")

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_a_worker_that_gets_no_memory_for_a_round_ends_with_11_and_saves_its_replica(self):
        replica = self.folder / "a.safetensors"
        self.start_server("--digest-every", 1, rounds=FOREVER)
        # Each round asks the system for its activations again: malloc keeps nothing back that would do for the next.
        worker = self.worker("--save", replica, "--batch", 32, "--sequence", 256, prefix=["env", "MALLOC_MMAP_THRESHOLD_=65536"])
        self.wait_round(2)
        self.pause()
        rounds = len(self.rounds())
        self.wait_until("the worker has done with the last round", lambda: any(
            e.get("digest_round") == rounds and e.get("worker") == "a" for e in self.events("digest")))
        pages = int(pathlib.Path(f"/proc/{worker.pid}/statm").read_text().split()[0])
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * MIB, resource.RLIM_INFINITY))
        self.assertEqual(self.ctl("resume")[0], OK)
        self.assert_exit(worker, NO_MEMORY)
        self.assertIn(self.message("round"), worker.log().splitlines()[-1])
        said = metadata(replica)
        # It may have had what the next few rounds took.
        stands = int(said["signvote.round"])
        self.assertGreaterEqual(stands, rounds)
        known = self.wait_until("its digest is known", lambda: {
            e["digest"] for e in self.events("digest") if e.get("digest_round") == stands})
        self.assertEqual({said["signvote.digest"]}, known)

    def test_every_row_of_the_page_is_met(self):
        self.assertEqual(set(self.rows), set(FAULTS))
        self.assertEqual(set(table("memory")), {"server", "copy", "worker", "round", "reserve"})
        for cells in self.rows.values():
            self.assertIn(cells[1], {*LOG_SAYS, "untouched"})


if __name__ == "__main__":
    harness.run_tests_with_own_mounts()
