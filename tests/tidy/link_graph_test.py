#!/usr/bin/env python3
"""The rooms that everything stands on link no gRPC, directly or through another library. Usage: link_graph_test.py
BUILD/link_graph.txt

The file is written when the build is configured (signvote_write_links in cmake/signvote.cmake).
"""

import sys
import unittest

# Libraries that must build and run without gRPC: docs/architecture.md, "Folders".
WITHOUT_GRPC = ["common", "messages", "tally", "stepsize", "round", "vote", "commit", "replica", "run", "codec", "direction",
                "worker_vote", "sim"]
GRPC = "gRPC::"

Graph = dict[str, list[str]]


def parse(text: str) -> Graph:
    graph: Graph = {}
    for line in text.splitlines():
        name, _, links = line.partition(":")
        graph[name] = [link.removeprefix("signvote::") for link in links.split()]
    return graph


def path_to_grpc(graph: Graph, name: str, seen: frozenset[str] = frozenset()) -> list[str]:
    """The libraries on the way from `name` to gRPC; empty when there is none."""
    for link in graph.get(name, []):
        if link.startswith(GRPC):
            return [name, link]
        if link not in seen and (rest := path_to_grpc(graph, link, seen | {name})):
            return [name, *rest]
    return []


class LinkGraphTest(unittest.TestCase):
    graph: Graph = {}

    def test_every_library_of_the_list_exists(self):
        self.assertEqual([name for name in WITHOUT_GRPC if name not in self.graph], [])

    def test_the_rooms_link_no_grpc(self):
        self.assertEqual([" -> ".join(path) for name in WITHOUT_GRPC if (path := path_to_grpc(self.graph, name))], [])

    def test_a_link_through_another_library_is_found(self):
        graph = parse("run: signvote::vote absl::status\nvote: signvote::wire\nwire: gRPC::grpc++\nloop: signvote::loop\n")
        self.assertEqual(path_to_grpc(graph, "run"), ["run", "vote", "wire", "gRPC::grpc++"])
        self.assertEqual(path_to_grpc(graph, "loop"), [])

    def test_the_servers_rpc_is_seen_to_link_grpc(self):
        self.assertNotEqual(path_to_grpc(self.graph, "rpc"), [])


if __name__ == "__main__":
    with open(sys.argv.pop(1), encoding="utf-8") as file:
        LinkGraphTest.graph = parse(file.read())
    unittest.main()
