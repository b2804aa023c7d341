"""A site's own certificate authority, and an HTTPS address on loopback that asks for a token before what is behind it."""

from __future__ import annotations

import datetime
import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.answering import Handler, serving

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Site:
    uri: str
    token: str
    authority: Path  # the certificate that a client must trust
    asked: list[str]  # paths of the requests that got in


def _issue(
    name: str, signer: x509.Certificate | None, signer_key
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate of an authority (no signer), or one for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    own = key.public_key()
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(own)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
    )
    if signer is None:
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= dict.fromkeys(("encipher_only", "decipher_only"), False)
        usage |= dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True)
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    else:
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(above, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
    return builder.sign(signer_key or key, hashes.SHA256()), key


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Files of a new authority, and of a certificate that it signed with its key."""
    authority, authority_key = _issue("made-up authority", None, None)
    certificate, key = _issue("made-up site", authority, authority_key)
    paths = folder / "authority.pem", folder / "site.pem", folder / "site.key"
    pem = serialization.Encoding.PEM
    paths[0].write_bytes(authority.public_bytes(pem))
    paths[1].write_bytes(certificate.public_bytes(pem))
    form, closed = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[2].write_bytes(key.private_bytes(pem, form, closed))
    return paths


@contextmanager
def tls_site(folder: Path, token: str, backend_port: int | None) -> Iterator[Site]:
    """An HTTPS address: 401 without the token, 403 with another, else what the server on the port answers.

    Without a port it answers as a tracking server that holds nothing.
    """
    authority, certificate, key = make_certificates(folder)
    asked: list[str] = []

    class Door(Handler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.body()
            given = self.headers.get("authorization", "")
            if given != f"Bearer {token}":
                self.answer(403 if given else 401, b"no")
                return
            asked.append(self.path)
            if backend_port is None:
                self.answer_json({})
                return
            behind = http.client.HTTPConnection(HOST, backend_port, timeout=180)
            own = ("host", "authorization", "content-length", "transfer-encoding", "accept-encoding")
            headers = {key: value for key, value in self.headers.items() if key.lower() not in own}
            behind.request(self.command, self.path, body, headers)
            got = behind.getresponse()
            self.answer(got.status, got.read(), {"Content-Type": got.headers.get("content-type", "")})
            behind.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_) -> None:
            pass  # a client that does not trust the certificate hangs up

    server = Quiet((HOST, 0), Door)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # the handshake is that of each connection's own thread, at its first read: a client that waits holds nobody up
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield Site(f"https://{HOST}:{server.server_port}", token, authority, asked)
