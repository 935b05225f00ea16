"""The `mlp` model in numpy: docs/models.md, "MLP". fp32 throughout, as in the C++ worker."""

import json
import math

import numpy as np

from . import coins
from .data import bell, draws
from .layout import Layout, Tensor

BUILTIN = {"model_type": "mlp", "features": 64, "hidden_size": 128, "num_hidden_layers": 2, "classes": 10}


class Mlp:
    """config: as in its config.json."""

    def __init__(self, config=None):
        config = dict(BUILTIN, **(config or {}))
        if config["model_type"] != "mlp":
            raise ValueError(f"model_type {config['model_type']} is not mlp")
        self.features, self.classes = config["features"], config["classes"]
        self.sizes = [self.features] + [config["hidden_size"]] * config["num_hidden_layers"] + [self.classes]
        tensors = []
        for k, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:])):
            tensors.append(Tensor(f"layers.{k}.weight", (outputs, inputs)))
            tensors.append(Tensor(f"layers.{k}.bias", (outputs,)))
        self.tensors = tensors        # in this model's own order
        self.layout = Layout(tensors)  # in the order of the coordinates: the run's, once it is known
        self.config_json = json.dumps(config)

    def adopt(self, layout):
        """From here on coordinates are numbered as the run numbers them. REQUIRES: the same names and shapes."""
        self.layout = layout

    def initial(self, init_seed=1):
        """The initial parameters, the same bits as the C++ worker's of the same seed."""
        values = np.zeros(self.layout.coordinates, dtype=np.float32)
        views = self.layout.views(values)
        seed = coins.domain_seed(coins.INITIAL, init_seed)
        for k, tensor in enumerate(self.tensors):  # its own order, whatever the run's is
            if len(tensor.shape) == 2:
                drawn = bell(draws(seed, k, tensor.count)) * math.sqrt(2.0 / tensor.shape[1])
                views[tensor.name][:] = drawn.reshape(tensor.shape)
        return values

    def loss_and_gradient(self, values, batch):
        """Mean cross-entropy of the minibatch in nats, and its gradient as a flat fp32 array."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._loss_and_gradient(values, batch)

    def _loss_and_gradient(self, values, batch):
        x = self.layout.views(values)
        gradient = np.zeros_like(values)
        g = self.layout.views(gradient)
        layers = len(self.sizes) - 1
        inputs = [batch.values]  # of each layer
        for k in range(layers):
            out = inputs[k] @ x[f"layers.{k}.weight"].T + x[f"layers.{k}.bias"]
            inputs.append(np.maximum(out, 0) if k + 1 < layers else out)
        logits = inputs[-1] - inputs[-1].max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(batch.labels))
        loss = float((log_sum[:, 0] - logits[rows, batch.labels]).mean())
        delta = np.exp(logits - log_sum)
        delta[rows, batch.labels] -= 1
        delta /= np.float32(len(rows))
        for k in reversed(range(layers)):
            g[f"layers.{k}.weight"][:] = delta.T @ inputs[k]
            g[f"layers.{k}.bias"][:] = delta.sum(axis=0)
            if k > 0:
                delta = (delta @ x[f"layers.{k}.weight"]) * (inputs[k] > 0)
        return loss, gradient
