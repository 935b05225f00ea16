"""Bytes of a killed server's journal that are not what was written, at every class of offset: what `signvote journal verify`
and a start make of each is what the damage table of docs/journal_format.md says, and `signvote journal truncate` mends it.
"""

import os
import shutil
import struct

from crashes import NAMES, CrashRun, harness
from harness import BAD_INPUT, BIN, OK
from replay import Journal

HEADER = {"magic": 0, "version": 8, "zeros": 12, "run id": 16, "sequence": 32, "epoch": 40, "first round": 48, "previous end": 56,
          "checksum": 64}
HEADER_BYTES = 72
RECORD = {"type": 0, "flags": 1, "zeros": 2, "size": 8, "round": 16, "synced": 24, "payload's checksum": 32, "checksum": 40}
RECORD_BYTES = 48


class Record:
    def __init__(self, data, line):
        offset, self.kind, _, round_ = line.split()[:4]
        self.offset, self.round = int(offset), int(round_.rstrip(":"))
        payload, = struct.unpack_from("<Q", data, self.offset + 8)
        self.payload = self.offset + RECORD_BYTES
        self.payload_end = self.payload + payload
        self.end = self.payload + -(-payload // 8) * 8  # behind its padding


class Recorded:
    """A journal as its server's last SIGKILL left it: what its segments have, and copies of it."""

    def __init__(self, folder, dump):
        self.records = {}  # by segment
        self.data = {}     # by segment, without the zeros behind its records
        for line in dump.splitlines():
            if line.startswith("segment-"):
                name = line.split(":")[0]
                self.records[name], data = [], (folder / name).read_bytes()
            else:
                self.records[name].append(Record(data, line))
                self.data[name] = data[:self.records[name][-1].end]
        names = sorted(self.records)
        self.first, self.middle, self.last = names[0], names[len(names) // 2], names[-1]
        # As if it had died a moment before, where a round was open.
        ends = self.records[self.last]
        while ends[-1].kind != "commit":
            ends.pop()
        self.data[self.last] = self.data[self.last][:ends[-1].end]
        self.bytes = len(data)  # of each
        self.others = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in self.data}

    @property
    def rounds(self):
        return self.rounds_to(self.last)

    def rounds_to(self, name):
        """Rounds up to the end of this segment."""
        return next(record.round for record in reversed(self.records[name]) if record.kind == "commit") + 1

    def copy_to(self, folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in (self.others | self.data).items():
            (folder / name).write_bytes(data)
        for name in self.data:
            os.truncate(folder / name, self.bytes)


def flip(name, offset):
    def change(folder):
        with open(folder / name, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
    return change


def cut(name, bytes_):
    return lambda folder: os.truncate(folder / name, bytes_)


def write(name, offset, data):
    def change(folder):
        with open(folder / name, "r+b") as file:
            file.seek(offset)
            file.write(data)
    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def chunk_of(recorded, name):
    """A chunk in the middle of a segment."""
    chunks = [record for record in recorded.records[name] if record.kind == "chunk"]
    return chunks[len(chunks) // 2]


class Damage(CrashRun):
    FLAGS = ("--direction", "signum", "--deadline", "off")
    recording = None  # one for all tests

    def recorded(self):
        Damage.recording = Damage.recording or self.killed_run()
        return Damage.recording

    def killed_run(self, *flags):
        """Of three servers' lives."""
        workers = []
        for life in range(3):
            self.life_of_server(*self.FLAGS, *flags)
            workers = workers or [self.life_of_worker(name) for name in NAMES]
            self.wait_round(8)
            if "--snapshot-every" in flags:
                self.wait_until("two snapshots", lambda: len(list(self.journal_folder.glob("snapshot-*.state"))) > 1)
            self.server.kill()
            self.server_died()
        for worker in workers:
            worker.kill()
        code, dump, err = self.command("signvote", "journal", "dump", self.journal_folder)
        self.assertEqual(code, OK, err)
        return Recorded(self.journal_folder, dump)

    # ---- what is made of a copy with one damage

    @property
    def damaged(self):
        return self.folder / "damaged"

    def verify(self):
        """(exit status, what it says)."""
        code, out, err = self.command("signvote", "journal", "verify", self.damaged)
        return code, out + err

    def started(self):
        """The round at which a server goes on, which is then killed; or its exit status and its error."""
        port_file = self.folder / f"ports.{len(self.processes)}.json"
        server = self.start("damaged", [
            BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http", "off", "--port-file", port_file, "--rounds",
            harness.FOREVER, "--seed", 7, "--rule", "alias", *self.FLAGS, "--journal", self.damaged], harness.Server)
        server.port_file = port_file
        self.wait_until("it listens or ends", lambda: port_file.exists() or not server.alive)
        if server.alive:
            server.kill()
            return self.recovered(server)
        errors = [line for line in server.log().splitlines() if " error " in line]
        self.assertEqual(len(errors), 1, server.log())
        return server.popen.returncode, errors[0]

    def damage(self, recorded, change):
        recorded.copy_to(self.damaged)
        change(self.damaged)

    def assert_refused(self, *texts):
        """By verify and by a start, in one error with these texts."""
        for code, says in (self.verify(), self.started()):
            self.assertEqual(code, BAD_INPUT, says)
            for text in texts:
                self.assertIn(text, says)

    def assert_reads(self, rounds):
        code, says = self.verify()
        self.assertEqual(code, OK, says)
        self.assertIn(f": {rounds} rounds", says)
        self.assertEqual(self.started(), rounds)

    def is_read(self, recorded, what, change, rounds):
        """It ends no start, and so many rounds are there."""
        with self.subTest(what):
            self.damage(recorded, change)
            self.assert_reads(rounds)

    def is_refused(self, recorded, what, change, error, rounds):
        """With this error and its remedy, and once truncated there are so many rounds."""
        with self.subTest(what):
            self.damage(recorded, change)
            self.assert_refused(error, "signvote journal truncate")
            code, out, err = self.command("signvote", "journal", "truncate", self.damaged)
            self.assertEqual(code, OK, out + err)
            self.assertIn(f"the run goes on from round {rounds}", out)
            self.assert_reads(rounds)

    # ---- the classes

    def test_headers_of_segments(self):
        r = self.recorded()
        for field, offset in HEADER.items():
            self.is_refused(r, f"{field} of {r.last}", flip(r.last, offset), r.last, r.rounds_to(r.middle))
        self.is_refused(r, f"magic of {r.middle}", flip(r.middle, 0), f"{r.middle} is no segment of a journal", r.rounds_to(r.first))
        self.is_refused(r, f"{r.last} ends in its header", cut(r.last, HEADER_BYTES - 1), r.last, r.rounds_to(r.middle))
        self.is_refused(r, f"{r.last} is empty", cut(r.last, 0), r.last, r.rounds_to(r.middle))
        # Its rounds have no other place, and what is left is said: the snapshot before round 0.
        with self.subTest(f"checksum of {r.first}"):
            self.damage(r, flip(r.first, HEADER["checksum"]))
            self.assert_refused(r.first, "signvote journal truncate")
            code, out, err = self.command("signvote", "journal", "truncate", self.damaged)
            self.assertEqual(code, BAD_INPUT, out + err)
            self.assertIn("start from the snapshot with --init", err)
            self.assertEqual(self.started()[0], BAD_INPUT)

    def test_records_that_others_say_were_durable(self):
        r = self.recorded()
        for name in (r.first, r.middle, r.last):
            records = r.records[name]
            commits = [record for record in records if record.kind == "commit"]
            broken = commits[len(commits) // 2]
            chunk = next(record for record in records if record.kind == "chunk" and record.round == broken.round)
            where = {"payload of a commit, begin": (broken, broken.payload),
                     "payload of a chunk, end": (chunk, chunk.payload_end - 1)}
            if name == r.middle:
                where |= {f"{field} of a {record.kind}": (record, record.offset + at)
                          for record in (chunk, broken) for field, at in RECORD.items()}
            for what, (record, at) in where.items():
                self.is_refused(r, f"{what} of {name}", flip(name, at), f"{name} is damaged at byte {record.offset}",
                                broken.round)
        # The next segment says where this one ends.
        name, last = r.middle, r.records[r.middle][-1]
        head = next(record for record in r.records[name] if record.kind == "head")
        for what, record, change, rounds in (
                ("its head", head, flip(name, head.payload), r.rounds_to(r.first)),
                ("its last record", last, flip(name, last.payload), r.rounds_to(name) - (last.kind == "commit")),
                ("its end amid its last record", last, cut(name, last.payload + 8), r.rounds_to(name) - (last.kind == "commit")),
                ("its end amid a record", chunk_of(r, name), cut(name, chunk_of(r, name).payload + 8), chunk_of(r, name).round),
                ("its end between records", chunk_of(r, name), cut(name, chunk_of(r, name).offset), chunk_of(r, name).round)):
            self.is_refused(r, f"{what}, {name}", change, f"{name} is damaged at byte {record.offset}", rounds)

    def test_a_tail_that_may_be_of_a_write_that_was_not_finished(self):
        r = self.recorded()
        last, rounds = r.records[r.last][-1], r.rounds
        self.assertEqual(last.kind, "commit")
        chunk = next(record for record in r.records[r.last] if record.kind == "chunk" and record.round == last.round)
        for record in (chunk, last):
            for field, at in RECORD.items():
                self.is_read(r, f"{field} of the last {record.kind}", flip(r.last, record.offset + at), rounds - 1)
            self.is_read(r, f"payload of the last {record.kind}", flip(r.last, record.payload), rounds - 1)
            for what, end in (("amid", record.payload + 8), ("in the header of", record.offset + 8), ("before", record.offset)):
                self.is_read(r, f"the last segment ends {what} the last {record.kind}", cut(r.last, end), rounds - 1)
        self.is_read(r, "the last segment ends with its header", cut(r.last, HEADER_BYTES), r.rounds_to(r.middle))
        self.is_read(r, "the last segment is missing", remove(r.last), r.rounds_to(r.middle))

    def test_what_is_of_no_meaning(self):
        r = self.recorded()
        for name in (r.first, r.last):
            data = r.data[name]
            padded = next(record for record in r.records[name] if record.payload_end < record.end)
            self.is_read(r, f"padding of {name}", flip(name, padded.payload_end), r.rounds)
            self.is_read(r, f"the byte behind the records of {name}", flip(name, len(data)), r.rounds)
            self.is_read(r, f"the last byte of {name}", flip(name, r.bytes - 1), r.rounds)
            self.is_read(r, f"{name} ends with its records", cut(name, len(data)), r.rounds)
            self.is_read(r, f"records of another segment behind those of {name}",
                         write(name, len(data), r.data[r.middle][HEADER_BYTES:]), r.rounds)

    def test_segments_that_are_not_where_they_were(self):
        r = self.recorded()
        self.is_refused(r, "the middle one is missing", remove(r.middle), f"{r.middle} is missing",
                        r.rounds_to(r.first))
        renamed = r.last.replace("3.journal", "4.journal")
        self.is_refused(r, "the last one has another name", lambda folder: (folder / r.last).rename(folder / renamed), renamed,
                        r.rounds_to(r.middle))
        with self.subTest("the first one is missing"):
            self.damage(r, remove(r.first))
            self.assert_refused("the commits from round 0 to ")

    def test_snapshots(self):
        r = self.killed_run("--snapshot-every", 3)
        states = sorted(name for name in r.others if name.endswith(".state"))
        newest = states[-1]
        # Head, planes' sizes and body; the parameters' header and numbers.
        model = newest.replace(".state", ".safetensors")
        for name, at in ((newest, 0), (newest, 8), (newest, 16), (newest, 32), (newest, 60), (model, 4), (model, 20), (model, 4000)):
            with self.subTest(f"{name}, byte {at}"):
                self.damage(r, flip(name, at))
                code, says = self.verify()
                self.assertEqual(code, BAD_INPUT, says)
                self.assertIn(f": {r.rounds} rounds", says)
                self.assertEqual(self.started(), r.rounds)
        for name in (newest, model):
            for what, change in (("cut", cut(name, 30)), ("missing", remove(name))):
                with self.subTest(f"{name}, {what}"):
                    self.damage(r, change)
                    self.assertEqual(self.started(), r.rounds)

    def test_a_run_that_gave_rounds_up_goes_on(self):
        r = self.killed_run()
        broken = r.records[r.middle][-1]
        flip(r.middle, broken.payload)(self.journal_folder)
        self.assertEqual(self.command("signvote", "journal", "truncate", self.journal_folder)[0], OK)
        self.journal = Journal()  # rounds that were given up are voted on again
        self.told = 0
        self.lives.clear()
        server = self.life_of_server(*self.FLAGS)
        self.assertEqual(self.recovered(server), broken.round)
        workers = [self.life_of_worker(name) for name in NAMES]
        self.wait_round(10)
        self.end_and_replay(workers)


if __name__ == "__main__":
    harness.run_tests()
