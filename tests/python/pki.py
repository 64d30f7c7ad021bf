"""A certificate authority, and a login service that signs tokens."""

import base64
import datetime
import ipaddress
import json
import os
import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


def replace(path, content):
    """Replaces a file atomically, as editors and the kubelet do."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(fresh, path)


class Authority:
    """Signs certificates for servers and clients."""

    def __init__(self, name="Test Authority"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self.builder(self.name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def builder(self, subject, public_key):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now - DAY).not_valid_after(now + DAY)

    def issue(self, names, usage=ExtendedKeyUsageOID.SERVER_AUTH):
        """Returns a certificate and its key as PEM, and its serial number. A name is an address, a URI or a DNS name."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self.builder(x509.Name([]), key.public_key())
        alternatives = x509.SubjectAlternativeName([general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        pkcs8 = serialization.PrivateFormat.PKCS8
        key_pem = key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())
        return certificate.public_bytes(serialization.Encoding.PEM), key_pem, certificate.serial_number


def general_name(name):
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Signer:
    """One key of a login service."""

    KEYS = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }

    def __init__(self, kid, issuer, audience, algorithm="EdDSA"):
        self.kid, self.issuer, self.audience, self.algorithm = kid, issuer, audience, algorithm
        self.key = self.KEYS[algorithm]()

    def token(self, name, role, life_s=600, **claims):
        now = int(time.time())
        claims = {"sub": name, "role": role, "iss": self.issuer, "aud": self.audience, "exp": now + life_s, **claims}
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers={"kid": self.kid})

    def public(self):
        """Returns the entry in a JSON Web Key Set."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        return {**json.loads(algorithm.to_jwk(self.key.public_key())), "kid": self.kid, "alg": self.algorithm, "use": "sig"}


def key_set(*signers):
    return json.dumps({"keys": [signer.public() for signer in signers]})


def unsigned(claims):
    """Returns a token with `alg` none."""
    parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join([base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts] + [""])
