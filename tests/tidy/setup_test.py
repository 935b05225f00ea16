"""scripts/setup, and the installed signvote-libtorch which shares its LibTorch part, with a fake system: each documented exit
status, and that they do only what is missing.

A folder of stub commands comes first in PATH and a prefix stands before the system's own files, so that nothing is
installed, nothing is fetched and no root is needed.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import zipfile

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SETUP = SOURCE / "scripts" / "setup"
REQUIREMENTS = SETUP.parent / "lib" / "requirements.txt"
TORCH_VERSION = re.search(r"^readonly TORCH_VERSION=(\S+)$", (SETUP.parent / "lib/libtorch.sh").read_text(),
                          re.MULTILINE).group(1)
TORCH_FILES = [
    "torch/include/torch/csrc/api/include/torch/torch.h",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
]
COMPILER_FILES = ["nvidia/cu13/" + file for file in (
    "bin/nvcc", "bin/ptxas", "bin/cudafe++", "nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h",
    "lib/libcudart.so.13")]
CUDA_FILES = ["nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13"]
TOOLS = ["awk", "bash", "basename", "cat", "chmod", "cmp", "cp", "cut", "dirname", "env", "find", "flock", "grep", "ln", "mkdir",
         "mktemp", "mv", "readlink", "rm", "sed", "sh", "sha256sum", "tail", "tee", "tr", "unzip", "wc"]


class SetupTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="signvote-setup-test-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.calls = self.dir / "calls"
        self.calls.write_text("")
        self.cache = self.dir / "cache"
        self.root = self.dir / "root"
        (self.root / "etc").mkdir(parents=True)
        self.os_release('ID=debian\nVERSION_ID="12"\n')
        self.installed = self.dir / "installed"
        self.installed.write_text("\n".join(self.packages()) + "\n")
        self.stub("id", "echo 0")
        self.stub("uname", "echo x86_64")
        self.stub("df", 'echo header; echo "disk 1 1 99999999 1% /"')
        self.stub("dpkg-query", f"sed 's/$/ installed/' {self.installed}; echo 'unpacked-only half-installed'")
        # Installing marks the packages as installed; each call notes whether services are held back.
        self.stub("apt-get", f'''
[ -e {self.root}/usr/sbin/policy-rc.d ] && echo "services held back" >>{self.calls}
case "$*" in
  *install*) for word; do case "$word" in -* | *=*) ;; *) echo "$word" >>{self.installed} ;; esac; done ;;
esac''')
        self.stub("systemctl", "true")
        self.toolkit("release 13.0")
        self.wheels = self.dir / "wheels"
        self.wheels.mkdir()
        self.make_wheel(f"torch-{TORCH_VERSION}.whl", TORCH_FILES + ["torch/unused.py"])
        self.make_wheel("cuda.whl", CUDA_FILES)
        self.stub_python()

    def packages(self):
        out = subprocess.run([SETUP, "--packages"], capture_output=True, text=True, check=True).stdout
        return out.split()

    def os_release(self, text):
        (self.root / "etc/os-release").write_text(text)

    def stub(self, name, body):
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls}\n{body}\n')
        path.chmod(0o755)

    def stub_python(self, venv="true", install="true"):
        """python3, whose venv and pip install may do something else in place of their work."""
        self.stub("python3", f'''
case "$*" in
  *"-m venv"*) {venv} || exit
    while [ $# -gt 1 ]; do shift; done
    mkdir -p "$1/bin"; printf '#!/bin/sh\\n' >"$1/bin/python3"; chmod 755 "$1/bin/python3"; echo text >"$1/bin/activate"
    ln -s python3 "$1/bin/python" ;;
  *" install "*) {install} || exit ;;
  *--version*) ;;
  *) while [ $# -gt 0 ]; do [ "$1" != --dest ] || dest=$2; shift; done
    cp {self.wheels}/*.whl "$dest" ;;
esac''')

    def make_wheel(self, name, files):
        with zipfile.ZipFile(self.wheels / name, "w") as wheel:
            for file in files:
                wheel.writestr(file, "content")

    def run_setup(self, *options, **extra):
        env = {"PATH": str(self.bin), "HOME": str(self.dir), "XDG_CACHE_HOME": str(self.cache),
               "SIGNVOTE_SETUP_ROOT": str(self.root), "TMPDIR": str(self.dir), **extra}
        return subprocess.run([SETUP, *options], env=env, capture_output=True, text=True, timeout=60, check=False)

    def expect(self, result, status, *words):
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        for word in words:
            self.assertIn(word, result.stdout + result.stderr)
        if status:
            errors = [line for line in result.stderr.splitlines() if ": error:" in line]
            self.assertEqual(len(errors), 1, result.stderr)

    def called(self, command):
        return [line for line in self.calls.read_text().splitlines() if line.startswith(command + " ")]

    def without(self, *missing):
        self.installed.write_text("\n".join(p for p in self.packages() if p not in missing) + "\n")

    def downloads(self):
        """Calls that fetch LibTorch."""
        return [c for c in self.called("python3") if " pip download " in c]

    def installs(self):
        """Calls that install the Python packages."""
        return [c for c in self.called("python3") if " install " in c]

    def python_target(self):
        return self.cache / f"signvote/python-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"

    def torch_target(self):
        return self.cache / f"signvote/libtorch-{TORCH_VERSION}"

    def test_complete_system_needs_no_network_and_no_root(self):
        target = self.torch_target()
        for file in TORCH_FILES + CUDA_FILES:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_text("x")
        (self.python_target() / "bin").mkdir(parents=True)
        (self.python_target() / "bin/python3").symlink_to(shutil.which("true"))
        shutil.copy(REQUIREMENTS, self.python_target())
        self.stub("id", "echo 1000")
        self.expect(self.run_setup(), 0, "Debian packages: all there", f"LibTorch {TORCH_VERSION}: all there",
                    "Python packages for tests: all there", "done")
        self.assertEqual(self.called("apt-get") + self.called("python3") + self.called("sudo"), [])

    def test_missing_packages_are_installed_once_and_services_held_back(self):
        self.without("cmake", "prometheus")
        result = self.run_setup("--no-torch")
        self.expect(result, 0, "2 missing", "installing: cmake prometheus", "left out (--no-torch)")
        self.assertEqual(len(self.called("apt-get")), 2)
        self.assertIn("--no-install-recommends cmake prometheus", self.called("apt-get")[1])
        self.assertIn("services held back", self.calls.read_text())
        self.assertFalse((self.root / "usr/sbin/policy-rc.d").exists())
        self.expect(self.run_setup("--no-torch"), 0, "all there")
        self.assertEqual(len(self.called("apt-get")), 2)

    def test_an_existing_service_policy_is_kept(self):
        self.without("prometheus")
        policy = self.root / "usr/sbin/policy-rc.d"
        policy.parent.mkdir(parents=True)
        policy.write_text("mine")
        self.expect(self.run_setup("--no-torch"), 0)
        self.assertEqual(policy.read_text(), "mine")

    def test_libtorch_is_unpacked_and_found_again(self):
        self.expect(self.run_setup(), 0, "downloading", "unpacking", "done")
        for file in TORCH_FILES + CUDA_FILES:
            self.assertTrue((self.torch_target() / file).is_file(), file)
        self.assertFalse((self.torch_target() / "torch/unused.py").exists())
        self.assertIn("--require-hashes", self.downloads()[0])
        self.expect(self.run_setup(), 0, f"LibTorch {TORCH_VERSION}: all there")
        self.assertEqual(len(self.downloads()), 1)
        self.assertEqual([p.name for p in self.cache.joinpath("signvote").glob("unpacking*")], [])

    def test_a_damaged_copy_is_replaced_as_a_whole(self):
        self.run_setup()
        (self.torch_target() / TORCH_FILES[1]).write_text("")
        (self.torch_target() / "stray").write_text("x")
        self.expect(self.run_setup(), 0, "lacks torch/lib/libtorch_cpu.so: replacing it")
        self.assertTrue((self.torch_target() / TORCH_FILES[1]).read_text())
        self.assertFalse((self.torch_target() / "stray").exists())

    def test_a_wheel_without_the_library_leaves_no_half_copy(self):
        self.make_wheel(f"torch-{TORCH_VERSION}.whl", TORCH_FILES[:1])
        self.expect(self.run_setup(), 8, "hold no torch/lib/libtorch_cpu.so")
        self.assertFalse(self.torch_target().exists())
        self.assertEqual([p.name for p in self.cache.joinpath("signvote").glob("unpacking*")], [])

    def test_own_libtorch_is_used_or_refused(self):
        own = self.dir / "own"
        self.expect(self.run_setup(LIBTORCH=str(own)), 7, f"LIBTORCH={own} has no include/torch")
        for file in TORCH_FILES:
            path = own / file.removeprefix("torch/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        self.expect(self.run_setup(LIBTORCH=str(own)), 0, f"using LIBTORCH={own}")
        self.assertEqual(self.downloads(), [])

    def test_the_python_environment_is_made_and_found_again(self):
        self.expect(self.run_setup("--no-torch"), 0, "Python packages for tests: downloading", "done")
        target = self.python_target()
        self.assertEqual((target / "requirements.txt").read_bytes(), REQUIREMENTS.read_bytes())
        self.assertTrue((target / "bin/python").is_symlink())
        self.assertFalse((target / "bin/activate").exists(), "names the folder it was made in")
        self.assertIn("--require-hashes", self.installs()[0])
        self.assertEqual(list(self.cache.joinpath("signvote").glob("unpacking*")), [])
        self.expect(self.run_setup("--no-torch"), 0, "Python packages for tests: all there")
        self.assertEqual(len(self.installs()), 1)

    def test_every_requirement_has_a_version_and_a_hash(self):
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
        self.assertTrue(lines)
        for line in lines:
            self.assertRegex(line, r"^[a-z0-9-]+==(\d+!)?[0-9.]+( --hash=sha256:[0-9a-f]{64})+$")

    def test_a_python_environment_that_is_not_whole_is_replaced(self):
        self.run_setup("--no-torch")
        for damage in (lambda: (self.python_target() / "requirements.txt").write_text("numpy==1.0\n"),
                       lambda: (self.python_target() / "bin/python3").write_text("#!/gone/python3\n")):
            damage()
            (self.python_target() / "stray").write_text("x")
            self.expect(self.run_setup("--no-torch"), 0, "is not whole: replacing it")
            self.assertFalse((self.python_target() / "stray").exists())
        self.assertEqual(len(self.installs()), 3)

    def test_the_python_packages_can_be_left_out(self):
        self.expect(self.run_setup("--no-torch", "--no-python"), 0, "Python packages for tests: left out (--no-python)")
        self.assertEqual(self.called("python3"), [])

    def test_python_packages_that_cannot_be_installed_leave_nothing_behind(self):
        for status, message, stub in (
                (5, "no network: PyPI", {"install": "echo 'Failed to establish a new connection' >&2; false"}),
                (8, "installing the Python packages failed", {"install": "echo 'DO NOT MATCH THE HASHES' >&2; false"}),
                (8, "python3 -m venv failed: no ensurepip", {"venv": "echo 'no ensurepip' >&2; false"})):
            self.stub_python(**stub)
            self.expect(self.run_setup("--no-torch"), status, message, "--no-python")
            self.assertEqual(list(self.cache.joinpath("signvote").glob("[pu]*")), [])

    def test_other_systems_are_refused_unless_forced(self):
        for text, name in (("ID=ubuntu\nVERSION_ID=24.04\n", "ubuntu 24.04"), ("ID=debian\nVERSION_ID=13\n", "debian 13"),
                           ("ID=arch\n", "arch unknown")):
            self.os_release(text)
            self.expect(self.run_setup("--no-torch"), 3, f"'{name}', not Debian 12", "--force")
            self.expect(self.run_setup("--no-torch", "--force"), 0, "going on")
        (self.root / "etc/os-release").unlink()
        self.expect(self.run_setup("--no-torch"), 3, "not Debian 12")

    def test_neither_root_nor_sudo(self):
        self.without("cmake")
        self.stub("id", "echo 1000")
        self.expect(self.run_setup("--no-torch"), 4, "neither root nor a user with sudo", "apt-get install cmake")
        self.stub("sudo", "exit 1")
        self.expect(self.run_setup("--no-torch"), 4, "sudo refused")
        self.assertEqual(self.called("apt-get"), [])

    def test_sudo_is_used_for_packages_only(self):
        self.without("cmake")
        self.stub("id", "echo 1000")
        self.stub("sudo", '[ "$1" = -v ] || exec "$@"')
        self.expect(self.run_setup(), 0, "done")
        self.assertEqual([c for c in self.called("sudo") if "python3" in c], [])
        self.assertEqual(len(self.called("apt-get")), 2)

    def test_no_network_for_packages(self):
        self.without("cmake")
        self.stub("apt-get", "echo \"E: Failed to fetch http://deb.example/ Temporary failure resolving\"; exit 100")
        self.expect(self.run_setup(), 5, "no network", "fetching the package lists")

    def test_no_network_for_libtorch(self):
        self.stub("python3", "echo 'NewConnectionError: Failed to establish a new connection' >&2; exit 1")
        self.expect(self.run_setup(), 5, "no network: PyPI", "--no-torch")
        self.assertFalse(self.torch_target().exists())

    def test_a_failed_installation_names_its_log(self):
        self.without("cmake")
        self.stub("apt-get", 'case "$*" in *install*) echo "dpkg: broken"; exit 100 ;; esac')
        result = self.run_setup("--no-torch")
        self.expect(result, 8, "installing the packages failed; the log is ")
        log = pathlib.Path(result.stderr.strip().rsplit(" ", 1)[1])
        self.assertIn("dpkg: broken", log.read_text())

    def test_an_installation_that_installs_nothing_is_noticed(self):
        self.without("cmake")
        self.stub("apt-get", "true")
        self.expect(self.run_setup("--no-torch"), 8, "still missing after the installation: cmake")

    def test_a_wrong_hash_is_a_failed_installation(self):
        self.stub("python3", "echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; exit 1")
        self.expect(self.run_setup(), 8, "downloading LibTorch failed")

    def test_not_enough_disk_says_where_and_how_much(self):
        self.stub("df", 'echo header; echo "disk 1 1 1024000 1% /"')
        self.expect(self.run_setup(), 6, "not enough disk space for LibTorch", "has 1000 MiB free, 2300 MiB are needed")
        self.stub("df", 'echo header; echo "disk 1 1 102400 1% /"')
        self.expect(self.run_setup("--no-torch"), 6, "not enough disk space for the Python packages", "500 MiB")
        self.without("cmake")
        self.expect(self.run_setup(), 6, "not enough disk space for the Debian packages", "2900 MiB")
        self.assertEqual(self.called("apt-get") + self.called("python3"), [])

    def test_help_and_wrong_options(self):
        self.expect(self.run_setup("--help"), 0, "Usage: scripts/setup", "Exit status:")
        self.expect(self.run_setup("--torch"), 2, "unknown option '--torch'")

    # ---- signvote-libtorch ------------------------------------------------------------------------------------------

    def run_installed(self, *options):
        prefix = self.dir / "prefix"
        for folder in ("bin", "lib/signvote", "share/signvote"):
            (prefix / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / "deploy/package/signvote-libtorch", prefix / "bin")
        for part in ("wheels.sh", "libtorch.sh"):
            shutil.copy(SOURCE / "scripts/lib" / part, prefix / "share/signvote")
        env = {"PATH": str(self.bin), "HOME": str(self.dir), "TMPDIR": str(self.dir)}
        return subprocess.run([prefix / "bin/signvote-libtorch", *options], env=env, capture_output=True, text=True, timeout=60,
                              check=False)

    def test_the_installed_program_fetches_the_same_libtorch_once(self):
        target = self.dir / "prefix/lib/signvote/libtorch"
        self.expect(self.run_installed("--check"), 7, f"{target} lacks torch/include")
        self.expect(self.run_installed(), 0, "downloading", "unpacking", f"LibTorch {TORCH_VERSION} is in {target}")
        for file in TORCH_FILES + CUDA_FILES:
            self.assertTrue((target / file).is_file(), file)
        calls = len(self.called("python3"))
        self.expect(self.run_installed(), 0, "all there")
        self.expect(self.run_installed("--check"), 0, "all there")
        self.assertEqual(len(self.called("python3")), calls)
        self.expect(self.run_installed("--link", str(target)), 7, "is there already; --remove it first")
        self.expect(self.run_installed("--remove"), 0, "removed")
        self.assertEqual(list(target.parent.iterdir()), [])

    def test_the_installed_program_names_its_failures(self):
        self.expect(self.run_installed("--torch"), 2, "unknown option '--torch'")
        self.expect(self.run_installed("--link"), 2, "--link needs a folder")
        self.stub("df", 'echo header; echo "disk 1 1 1024000 1% /"')
        self.expect(self.run_installed(), 6, "has 1000 MiB free, 2300 MiB are needed")
        self.stub("df", 'echo header; echo "disk 1 1 99999999 1% /"')
        self.stub("python3", "case \"$*\" in *--version*) ;; *) echo 'Failed to establish a new connection' >&2; exit 1 ;; esac")
        self.expect(self.run_installed(), 5, "no network: PyPI", "--link a copy that was fetched elsewhere")
        self.stub("python3", "exit 1")
        self.expect(self.run_installed(), 8, "python3 has no pip; run: apt-get install python3-pip")
        (self.bin / "unzip").unlink()
        self.expect(self.run_installed(), 8, "unzip is missing; run: apt-get install python3-pip unzip")
        self.assertEqual([p.name for p in (self.dir / "prefix/lib/signvote").glob("unpacking*")], [])

    def test_temporary_folders_are_removed(self):
        self.run_setup()
        self.assertEqual([p.name for p in self.dir.glob("signvote-setup-??????")], [])

    # ---- the CUDA compiler ------------------------------------------------------------------------------------------

    def toolkit(self, says):
        """An nvcc where NVIDIA's toolkit has it."""
        nvcc = self.root / "usr/local/cuda/bin/nvcc"
        nvcc.parent.mkdir(parents=True, exist_ok=True)
        nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, {says}, V1"\n')
        nvcc.chmod(0o755)
        return nvcc

    def test_a_cuda_compiler_is_fetched_only_where_there_is_none(self):
        self.expect(self.run_setup(), 0, "CUDA compiler: all there", "cuda/bin/nvcc, 13.0)")
        self.toolkit("release 12.8")  # too old
        self.make_wheel("nvcc.whl", COMPILER_FILES)
        target = self.cache / "signvote/cuda-13.0"
        self.expect(self.run_setup("--no-cuda"), 0, "CUDA compiler: left out")
        self.expect(self.run_setup("--no-torch"), 0, "CUDA compiler: left out")
        self.assertFalse(target.exists())
        self.expect(self.run_setup(), 0, "CUDA compiler 13.0: downloading 97 MiB", "CUDA compiler 13.0 is in")
        for file in COMPILER_FILES:
            self.assertTrue((target / file).is_file(), file)
        self.assertTrue(os.access(target / "nvidia/cu13/bin/nvcc", os.X_OK))
        self.assertTrue(os.access(target / "nvidia/cu13/nvvm/bin/cicc", os.X_OK))
        self.assertIn("--require-hashes", self.downloads()[-1])
        fetched = len(self.downloads())
        self.expect(self.run_setup(), 0, "CUDA compiler 13.0: all there")
        self.assertEqual(len(self.downloads()), fetched)
        (target / COMPILER_FILES[1]).unlink()
        self.expect(self.run_setup(), 0, "lacks nvidia/cu13/bin/ptxas: replacing it")
        self.assertEqual([p.name for p in self.cache.joinpath("signvote").glob("unpacking*")], [])

    def test_a_cuda_compiler_that_cannot_be_had_is_an_error_with_a_remedy(self):
        self.run_setup()
        self.toolkit("release 12.8")
        self.expect(self.run_setup(), 8, "hold no nvidia/cu13/bin/nvcc")
        self.stub("python3", "echo 'NewConnectionError: Failed to establish a new connection' >&2; exit 1")
        self.expect(self.run_setup(), 5, "no network: PyPI", "--no-cuda")
        self.stub("python3", "exit 1")
        self.expect(self.run_setup(), 8, "downloading the CUDA compiler failed", "--no-cuda")
        self.stub("df", 'echo header; echo "disk 1 1 102400 1% /"')
        self.expect(self.run_setup(), 6, "not enough disk space for the CUDA compiler", "500 MiB are needed")
        self.assertFalse((self.cache / "signvote/cuda-13.0").exists())

    def test_own_cuda_compiler_is_used_or_refused(self):
        own = self.toolkit("release 13.1").rename(self.dir / "nvcc")
        self.expect(self.run_setup(SIGNVOTE_NVCC=str(own)), 0, f"using SIGNVOTE_NVCC={own} (13.1)")
        self.expect(self.run_setup(SIGNVOTE_NVCC="/none"), 9, "SIGNVOTE_NVCC=/none is no nvcc 13 or later")


if __name__ == "__main__":
    unittest.main()
