"""What nvcc made of the kernels: machine code of every architecture that docs/gpu.md names, and PTX for later ones.

    fat_objects_test.py OBJECT...

Reads the fat binaries in the objects' section .nv_fatbin, whose layout NVIDIA does not publish: a header of 16 bytes (magic,
version, its size, the size of what follows), then entries (kind, version, size of the entry's header, size of its code; at 28
the architecture). Standard library only.
"""

import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

MAGIC = 0xBA55ED50
PTX, MACHINE_CODE = 1, 2
WANTED = {(MACHINE_CODE, 80), (MACHINE_CODE, 90), (MACHINE_CODE, 100), (MACHINE_CODE, 120), (PTX, 120)}
OBJECTS = []


def contents(binary):
    """{(kind, architecture)} of the fat binaries in a section's bytes; raises ValueError where they are not laid out so."""
    found, at = set(), 0
    while at < len(binary):
        magic, _, header, size = struct.unpack_from("<IHHQ", binary, at)
        if magic != MAGIC or at + header + size > len(binary):
            raise ValueError(f"no fat binary at byte {at}")
        entry, at = at + header, at + header + size
        while entry < at:
            kind, _, header, size = struct.unpack_from("<HHIQ", binary, entry)
            (architecture,) = struct.unpack_from("<I", binary, entry + 28)
            if kind not in (PTX, MACHINE_CODE) or header < 32 or size == 0:
                raise ValueError(f"no entry at byte {entry}")
            found.add((kind, architecture))
            entry += header + size
    return found


class FatObjects(unittest.TestCase):
    def test_every_architecture_has_its_code(self):
        self.assertTrue(OBJECTS)
        for path in OBJECTS:
            with tempfile.TemporaryDirectory() as folder:
                section = pathlib.Path(folder, "section")
                subprocess.run(["objcopy", "--output-target=binary", "--only-section=.nv_fatbin", path, section], check=True)
                self.assertEqual(contents(section.read_bytes()), WANTED, path)

    def test_an_architecture_that_is_missing_shows(self):
        def entry(kind, architecture):
            return struct.pack("<HHIQ12xI", kind, 257, 32, 8, architecture) + bytes(8)
        body = entry(PTX, 120) + entry(MACHINE_CODE, 80)
        binary = struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body
        self.assertEqual(contents(binary * 2), {(PTX, 120), (MACHINE_CODE, 80)})
        for damaged in (b"\0" + binary[1:], binary[:-1], binary[:16] + b"\7" + binary[17:]):
            with self.assertRaises(ValueError):
                contents(damaged)


if __name__ == "__main__":
    OBJECTS = sys.argv[1:]
    unittest.main(argv=sys.argv[:1], verbosity=2)
