"""The protocol's messages and stubs, made from proto/signvote/v1/training.proto when this is imported."""

import pathlib
import sys

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "proto"))
training, services = grpc.protos_and_services("signvote/v1/training.proto")
