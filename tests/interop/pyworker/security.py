"""Connections: mutual TLS to a server that has the server's role, or plaintext.

gRPC for Python checks the chain and the name of the server's certificate, but shows it to nobody, and the role is an URI
in it. So the certificate is fetched by a handshake of our own, its role is read there, and the connection then
trusts this one certificate and no other.
"""

import socket
import ssl

import grpc

SERVER_ROLE = ("URI", "signvote:role:server")
# The largest message that is taken, and HTTP/2 pings: a machine that lost power says nothing, for hours.
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1),
           ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000),
           ("grpc.http2.max_pings_without_data", 0)]


class Refused(Exception):
    """The other side is not whom we look for, or does not want us; trying again does not help."""


class Unreachable(Exception):
    """Nobody answers; trying again may help."""


class Credentials:
    """This worker's certificate and key, and the authority it trusts. OSError when a file cannot be used."""

    def __init__(self, ca, certificate, key):
        self.certificate, self.key = certificate.read_bytes(), key.read_bytes()
        self._context = ssl.create_default_context(cafile=ca)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["h2"])

    def server_certificate(self, address, timeout):
        """PEM of the server's certificate, chain, name and role checked."""
        host, port = address.rsplit(":", 1)
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), timeout) as plain:
                with self._context.wrap_socket(plain, server_hostname=host) as tls:
                    names = tls.getpeercert().get("subjectAltName", ())
                    der = tls.getpeercert(binary_form=True)
        except ssl.SSLCertVerificationError as error:
            raise Refused(f"{address}: certificate verify failed: {error.verify_message}") from None
        except OSError as error:
            raise Unreachable(f"{address}: {error}") from None
        if SERVER_ROLE not in names:
            raise Refused(f"{address} shows a certificate without the role of a server; it has {names}")
        return ssl.DER_cert_to_PEM_cert(der).encode()


def dial(address, credentials, timeout):
    """A channel. Credentials None: plaintext."""
    if credentials is None:
        return grpc.insecure_channel(address, OPTIONS)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(
        root_certificates=credentials.server_certificate(address, timeout),
        private_key=credentials.key, certificate_chain=credentials.certificate), OPTIONS)
