"""gRPC's standard services on a live server over mTLS, asked by PyPI's own clients: health and reflection.

What grpc_health_probe and grpcurl do, without them.
"""

import pathlib
import sys
import unittest

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import harness  # noqa: E402

from pyworker.messages import training  # noqa: E402

SECONDS = 60 * harness.SLOWNESS


class StandardServices(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a")
        self.start_server(rounds=5)

    def channel(self, *, certificate=True):
        mine = self.tls / "workers" / "a"
        own = {"private_key": (mine / "worker.key").read_bytes(), "certificate_chain": (mine / "worker.crt").read_bytes()}
        channel = grpc.secure_channel(self.server.address, grpc.ssl_channel_credentials(
            root_certificates=(mine / "ca.crt").read_bytes(), **(own if certificate else {})))
        self.addCleanup(channel.close)
        return channel

    def test_the_health_service_says_serving(self):
        health = health_pb2_grpc.HealthStub(self.channel())
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=SECONDS)
        self.assertEqual(unknown.exception.code(), grpc.StatusCode.NOT_FOUND)
        first = next(iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)))
        self.assertEqual(first.status, health_pb2.HealthCheckResponse.SERVING)

    def test_nobody_without_a_certificate_learns_anything(self):
        health = health_pb2_grpc.HealthStub(self.channel(certificate=False))
        with self.assertRaises(grpc.RpcError) as refused:
            health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def test_reflection_lists_the_services_and_describes_the_protocol_as_its_file_does(self):
        database = ProtoReflectionDescriptorDatabase(self.channel())
        self.assertLessEqual({"signvote.v1.Training", "signvote.v1.Admin", "grpc.health.v1.Health"},
                             set(database.get_services()))
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("signvote.v1.Training")
        self.assertEqual([m.name for m in service.methods], ["Session", "FetchState", "UploadState"])
        self.assertEqual(service.methods_by_name["Session"].input_type.full_name, "signvote.v1.WorkerMessage")
        # The whole file, field by field: what a server says of itself is what the repository's file says.
        live, local = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
        service.file.CopyToProto(live)
        training.DESCRIPTOR.CopyToProto(local)
        for file in (live, local):
            for message in file.message_type:
                for field in message.field:
                    field.ClearField("json_name")  # one of the two leaves it out
        self.assertEqual(live, local)


if __name__ == "__main__":
    unittest.main(verbosity=2)
