"""Checkpoints as the world has them, made by the public library of safetensors: each is loaded by a server, trained on for two
rounds by signvote-worker, exported, and read again by that library and, where they are installed, by transformers.

That each tensor has come to its place is seen at the loss: a LLaMA in numpy, written from its paper, computes the one that the
worker has in the first round.

transformers and PyTorch take 5 GB. With SIGNVOTE_TEST_TRANSFORMERS=1 they are fetched from PyPI into an environment of their own
beside that of scripts/setup, or found there; without it, and without them, that one test is left out, and the file ends as skipped.
"""

import importlib.util
import json
import os
import pathlib
import re
import site
import subprocess
import sys
import unittest

import numpy as np
import safetensors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))

import harness  # noqa: E402
from harness import BAD_INPUT, OK, REFUSED  # noqa: E402

LENGTH = 16
STEPSIZE = 2.0 ** -10
# What transformers 5 writes; keys that signvote does not know are among it.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "float32",
    "eos_token_id": 2, "head_dim": 8, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
    "max_position_embeddings": 64, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "pad_token_id": None, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "tie_word_embeddings": False,
    "transformers_version": "5.0.0", "use_cache": True, "vocab_size": 64}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = {"F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2")}


TRANSFORMERS = "5.24.0"


def find_transformers():
    """Why transformers cannot be imported; "": it can."""
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        return ""
    if os.environ.get("SIGNVOTE_TEST_TRANSFORMERS", "0") == "0":
        return "transformers is not installed; SIGNVOTE_TEST_TRANSFORMERS=1 fetches it (5 GB)"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "signvote"
    folder = cache / f"transformers-{TRANSFORMERS}"
    libtorch = (pathlib.Path(__file__).resolve().parents[2] / "scripts" / "lib" / "libtorch.sh").read_text()
    torch = re.search(r"^readonly TORCH_VERSION=(\S+)$", libtorch, re.MULTILINE).group(1)
    if not (folder / "whole").exists():
        # pip leaves what is there already; the mark comes last.
        for command in ([sys.executable, "-m", "venv", folder],
                        [folder / "bin" / "python3", "-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:",
                         "--progress-bar=off", f"torch=={torch}", f"transformers=={TRANSFORMERS}"]):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode != 0:
                return f"transformers cannot be installed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]}"
        (folder / "whole").touch()
    for packages in folder.glob("lib/python3.*/site-packages"):
        site.addsitedir(packages)  # behind those that are here
    return ""


def to_bf16(x):
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, "<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def widen(dtype, array):
    if dtype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4")


def narrow(dtype, x):
    return to_bf16(x) if dtype == "BF16" else x.astype(DTYPES[dtype][1])


def save(path, tensors, dtype="F32"):
    """{name: fp32 array} as a file of this format."""
    arrays = {name: np.ascontiguousarray(narrow(dtype, x)) for name, x in tensors.items()}
    specs = {name: safetensors.TensorSpec(dtype=DTYPES[dtype][0], shape=a.shape, data_ptr=a.ctypes.data, data_len=a.nbytes)
             for name, a in arrays.items()}
    safetensors.serialize_file(specs, path, metadata={"format": "pt"})


def load(path):
    """{name: fp32 array} and the formats of a model: a file, or an index."""
    path = pathlib.Path(path)
    files = [path]
    if path.suffix == ".json":
        files = [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
    tensors, dtypes = {}, set()
    for file in files:
        for name, entry in safetensors.deserialize(file.read_bytes()):
            dtypes.add(entry["dtype"])
            array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]][1]).reshape(entry["shape"])
            tensors[name] = widen(entry["dtype"], array)
    return tensors, dtypes


def weights(config, seed=1):
    rng = np.random.default_rng(seed)
    hidden, heads, kv, size = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"))
    shapes = {EMBEDDING: (config["vocab_size"], hidden)}
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {layer + "input_layernorm.weight": (hidden,), layer + "post_attention_layernorm.weight": (hidden,),
                   layer + "self_attn.q_proj.weight": (heads * size, hidden), layer + "self_attn.k_proj.weight": (kv * size, hidden),
                   layer + "self_attn.v_proj.weight": (kv * size, hidden), layer + "self_attn.o_proj.weight": (hidden, heads * size),
                   layer + "mlp.gate_proj.weight": (config["intermediate_size"], hidden),
                   layer + "mlp.up_proj.weight": (config["intermediate_size"], hidden),
                   layer + "mlp.down_proj.weight": (hidden, config["intermediate_size"])}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = (config["vocab_size"], hidden)
    # Large enough that no two tensors could change places unnoticed.
    return {name: (0.25 * rng.standard_normal(shape) + (1 if len(shape) == 1 else 0)).astype("<f4") for name, shape in shapes.items()}


def llama_loss(config, w, tokens):
    """Mean cross-entropy of the next token in double precision: Touvron et al. 2023, rotary positions in the rotate-half form."""
    w = {name: x.astype(np.float64) for name, x in w.items()}
    heads, kv, size = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    inputs, targets = tokens[:-1], tokens[1:]
    angles = np.outer(np.arange(len(inputs)), config["rope_parameters"]["rope_theta"] ** (-np.arange(0, size, 2) / size))
    cos, sin = (np.concatenate([f(angles)] * 2, axis=1)[:, None] for f in (np.cos, np.sin))

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    def rotate(x):
        return x * cos + np.concatenate([-x[..., size // 2:], x[..., :size // 2]], -1) * sin

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    x = w[EMBEDDING][inputs]
    hidden_from = np.triu(np.full((len(inputs),) * 2, -np.inf), 1)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        y = norm(x, w[layer + "input_layernorm.weight"])
        q, k, v = (np.reshape(y @ w[f"{layer}self_attn.{p}_proj.weight"].T, (len(inputs), -1, size)) for p in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(a, heads // kv, axis=1) for a in (k, v))
        scores = softmax(np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size) + hidden_from)
        x = x + np.einsum("hij,jhd->ihd", scores, v).reshape(len(inputs), -1) @ w[layer + "self_attn.o_proj.weight"].T
        y = norm(x, w[layer + "post_attention_layernorm.weight"])
        gate = y @ w[layer + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[layer + "mlp.up_proj.weight"].T)) @ w[layer + "mlp.down_proj.weight"].T
    logits = norm(x, w["model.norm.weight"]) @ w.get(HEAD, w[EMBEDDING]).T
    return float(-np.log(softmax(logits)[np.arange(len(targets)), targets]).mean())


@unittest.skipUnless(harness.has_torch(), "signvote-worker needs LibTorch")
class CheckpointTest(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a")
        rng = np.random.default_rng(2)
        # One window and its last target: every minibatch is this.
        self.tokens = rng.integers(0, CONFIG["vocab_size"], LENGTH + 1)
        self.data = self.folder / "data"
        self.data.mkdir()
        self.tokens.astype("<u2").tofile(self.data / "train.bin")
        rng.integers(0, CONFIG["vocab_size"], 4 * LENGTH).astype("<u2").tofile(self.data / "val.bin")
        self.model = self.new_folder("model")

    def new_folder(self, name):
        folder = self.folder / name
        folder.mkdir()
        return folder

    def worker(self, *flags, model=None):
        return self.start_worker("a", "--model", model or self.model, "--data", self.data, "--data-format", "nanogpt", "--batch", 1,
                                 "--sequence", LENGTH, "--threads", 1, "--eval", "off", *flags, program="signvote-worker")

    def train(self, *flags, init=None, worker_flags=(), model=None):
        """Two rounds; returns what was exported, as read by the library, its formats, and the loss of the first round."""
        out = self.new_folder(f"out{len(self.processes)}")
        self.exported = out / "model.safetensors"
        self.start_server("--init", init or self.model, "--export", self.exported, "--rule", "fixed", "--stepsize", STEPSIZE, *flags,
                          rounds=2)
        self.assert_all_end_well([self.worker(*worker_flags, model=model)])
        whole = self.exported.exists()
        tensors, dtypes = load(self.exported if whole else f"{self.exported}.index.json")
        self.assertEqual(whole, not pathlib.Path(f"{self.exported}.index.json").exists())
        return tensors, dtypes, self.rounds()[0]["workers"][0]["loss"]

    def assert_trained_from(self, start, config, **how):
        """A run begins with exactly these tensors and moves each coordinate by one step a round."""
        tensors, dtypes, loss = self.train(**how)
        self.assertAlmostEqual(loss, llama_loss(config, start, self.tokens), delta=2e-6)
        self.assertEqual(dtypes, {"F32"})
        self.assertEqual({n: x.shape for n, x in tensors.items()}, {n: x.shape for n, x in start.items()})
        for name, x in tensors.items():
            steps = np.abs(x.astype(np.float64) - start[name]) / STEPSIZE
            self.assertLess(np.abs(steps - 2 * np.round(steps / 2)).max(), 1e-3, name)
            self.assertLess(steps.max(), 2.001, name)
        self.assertGreater(max(np.abs(x - start[n]).max() for n, x in tensors.items()), STEPSIZE)
        return tensors

    def write_config(self, **changes):
        config = CONFIG | changes
        (self.model / "config.json").write_text(json.dumps(config, indent=2))
        return config

    # ---- what is read ----------------------------------------------------------------------------------------------

    def test_each_format_is_widened_exactly(self):
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                config = self.write_config(dtype=DTYPES[dtype][0])
                w = weights(config)
                save(self.model / "model.safetensors", w, dtype)
                self.assert_trained_from({n: widen(dtype, narrow(dtype, x)) for n, x in w.items()}, config)
                exported = json.loads((self.exported.parent / "config.json").read_text())
                self.assertEqual(exported, config | {"dtype": "float32"}, "its keys stay")

    def test_shards_behind_an_index_with_the_frequencies_that_older_files_have(self):
        config = self.write_config(rope_parameters=None, rope_theta=500000.0)
        w = weights(config)
        parts = {"model-00001-of-00002.safetensors": list(w)[:9], "model-00002-of-00002.safetensors": list(w)[9:]}
        index = {"metadata": {"total_size": sum(x.nbytes for x in w.values())}, "weight_map": {}}
        for n, (file, names) in enumerate(parts.items()):
            tensors = {name: w[name] for name in names} | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(4, "<f4")}
            save(self.model / file, tensors, "F32" if n else "BF16")
            index["weight_map"] |= {name: file for name in tensors}
            w |= {name: widen("BF16", to_bf16(w[name])) for name in names if not n}
        path = self.model / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2))
        config["rope_parameters"] = CONFIG["rope_parameters"]  # as numpy has it
        for init in (self.model, path):
            self.assert_trained_from(w, config, init=init)
        # Not whole: the culprits are named.
        code, _, err = self.start_without(f"{self.model}/none-of-it")
        self.assertEqual(code, BAD_INPUT, err)
        (self.model / "model-00002-of-00002.safetensors").unlink()
        code, _, err = self.start_without(self.model)
        self.assertEqual(code, BAD_INPUT, err)
        self.assertIn("model-00002-of-00002.safetensors: cannot open: No such file or directory", err)

    def start_without(self, init):
        return self.command("signvote-server", "--listen", "127.0.0.1:0", "--http", "off", "--insecure", "--rounds", 1, "--init", init)

    def test_a_tied_head_is_there_once_or_twice_or_under_the_heads_name(self):
        config = self.write_config(tie_word_embeddings=True)
        w = weights(config)
        head = w | {HEAD: w[EMBEDDING]}
        for files in (w, head, {n: x for n, x in head.items() if n != EMBEDDING}):
            save(self.model / "model.safetensors", files)
            self.assert_trained_from(w, config)
        save(self.model / "model.safetensors", head | {HEAD: w[EMBEDDING] + np.float32(1)})
        self.start_server("--init", self.model, rounds=2)
        worker = self.worker()
        self.assert_exit(worker, REFUSED)
        self.assertIn("a lm_head.weight that differs from model.embed_tokens.weight", worker.log())

    def test_another_models_config_beside_the_file_is_refused_by_its_key(self):
        config = self.write_config()
        save(self.model / "model.safetensors", weights(config))
        other = self.new_folder("other")
        (other / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 1e4, "type": "default"}}))
        self.start_server("--init", self.model, rounds=2)
        worker = self.worker(model=other)
        self.assert_exit(worker, REFUSED)
        self.assertIn('"rope_theta" is 500000 here, 10000 there', worker.log())

    # ---- what is written -------------------------------------------------------------------------------------------

    def test_bf16_in_shards_is_what_rounding_gives_and_starts_another_run(self):
        config = self.write_config()
        save(self.model / "model.safetensors", weights(config))
        mine = self.new_folder("mine")
        tensors, dtypes, _ = self.train("--export-dtype", "bf16", "--export-shard-bytes", 20_000, "--export-every", 1,
                                        worker_flags=["--save", mine / "a.safetensors", "--save-every", 1, "--save-shard-bytes", 20_000])
        self.assertEqual(dtypes, {"BF16"})
        replica, saved_as = load(mine / "a.safetensors.index.json")
        self.assertEqual(saved_as, {"F32"})
        for name, x in replica.items():
            np.testing.assert_array_equal(tensors[name], widen("BF16", to_bf16(x)), name)
        folder = self.exported.parent
        self.assertEqual(json.loads((folder / "config.json").read_text())["dtype"], "bfloat16")
        index = json.loads(pathlib.Path(f"{self.exported}.index.json").read_text())
        shards = {folder / name for name in index["weight_map"].values()}
        self.assertGreater(len(shards), 1)
        self.assertEqual(index["metadata"]["total_size"], 2 * sum(x.size for x in tensors.values()))
        self.assertTrue(all(shard.stat().st_size < 20_000 + 4096 for shard in shards))
        self.assertEqual({p.name for p in folder.glob("*.tmp")}, set())
        self.assertTrue(list(mine.glob("a.round-*.safetensors.index.json")), "copies are written in the same way")
        # What was rounded away is gone: the next run begins with what the file holds.
        self.assert_trained_from(tensors, config, init=folder, model=folder)

    def test_signvote_export_writes_each_format(self):
        config = self.write_config()
        w = weights(config)
        save(self.model / "model.safetensors", w)
        self.start_server("--init", self.model, "--rule", "fixed", "--stepsize", STEPSIZE, rounds=harness.FOREVER)
        worker = self.worker()
        self.wait_round(2)
        self.pause()
        out = self.new_folder("out") / "model.safetensors"
        code, text, err = self.ctl("export", out)
        self.assertEqual(code, OK, err)
        whole, _ = load(out)
        code, text, err = self.ctl("export", out, "--dtype", "bf16", "--shard-bytes", 20_000)
        self.assertEqual(code, OK, err)
        self.assertRegex(text, r"model\.safetensors\.index\.json: round \d+, \d+ bytes in \d files, config\.json beside it")
        self.assertFalse(out.exists(), "it would hide the index")
        narrow, dtypes = load(f"{out}.index.json")
        self.assertEqual(dtypes, {"BF16"})
        for name, x in whole.items():
            np.testing.assert_array_equal(narrow[name], widen("BF16", to_bf16(x)), name)
        code, text, err = self.ctl("export", out)
        self.assertEqual(code, OK, err)
        self.assertEqual(sorted(p.name for p in out.parent.iterdir()), ["config.json", "model.safetensors"])
        self.end_run(worker)

    def test_transformers_loads_what_is_exported_and_writes_what_is_loaded(self):
        if lacks := find_transformers():
            self.skipTest(lacks)
        import torch
        import transformers
        from transformers import LlamaConfig, LlamaForCausalLM

        def loss_of(folder):
            model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
            logits = model(torch.tensor(self.tokens[None, :-1])).logits
            return torch.nn.functional.cross_entropy(logits[0], torch.tensor(self.tokens[1:])).item()

        print(f"transformers {transformers.__version__}, torch {torch.__version__}")
        known = {k: v for k, v in CONFIG.items() if k not in ("architectures", "dtype", "model_type", "transformers_version")}
        for tied in (False, True):
            with self.subTest(tied=tied):
                torch.manual_seed(3)
                LlamaForCausalLM(LlamaConfig(**known | {"tie_word_embeddings": tied, "initializer_range": 0.25})).save_pretrained(
                    self.model, max_shard_size="20KB")
                self.train()
                theirs, ours = loss_of(self.model), self.rounds()[0]["workers"][0]["loss"]
                print(f"tied={tied}: read: transformers {theirs:.8f}, signvote {ours:.8f}, apart {abs(theirs - ours):.1e}")
                self.assertAlmostEqual(theirs, ours, delta=2e-6)
                for flags in ((), ("--export-shard-bytes", 20_000)):
                    self.train(*flags)
                    exported = self.exported.parent
                    theirs = loss_of(exported)
                    _, _, ours = self.train(init=exported, model=exported)
                    print(f"tied={tied}: written: transformers {theirs:.8f}, signvote {ours:.8f}, apart {abs(theirs - ours):.1e}")
                    self.assertAlmostEqual(theirs, ours, delta=2e-6)
                for file in self.model.iterdir():
                    file.unlink()


if __name__ == "__main__":
    harness.run_tests()
