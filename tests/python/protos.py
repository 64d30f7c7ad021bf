"""The protos compiled to Python on demand: the messages of slotcast.v1, and stubs."""

import importlib
import pathlib
import random
import sys
import time
import types
import uuid

import grpc_tools
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROTO = ROOT / "proto"


def generate(folder, more=None):
    """Compiles the protos, and `more` protos given as text by name, into a folder on the path. Returns the modules in `load`."""
    names = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    for name, text in (more or {}).items():
        (folder / name).write_text(text)
        names.append(name)
    includes = [PROTO, folder, pathlib.Path(grpc_tools.__file__).parent / "_proto"]
    arguments = [f"-I{path}" for path in includes] + [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["protoc", *arguments, *names]) == 0, "the protos do not compile"
    sys.path.insert(0, str(folder))
    return importlib.import_module


def messages():
    """Returns every message and enumeration of slotcast.v1 by name."""
    found = types.SimpleNamespace()
    for path in sorted((PROTO / "slotcast" / "v1").glob("*.proto")):
        module = importlib.import_module(f"slotcast.v1.{path.stem}_pb2")
        for name in [*module.DESCRIPTOR.message_types_by_name, *module.DESCRIPTOR.enum_types_by_name]:
            setattr(found, name, getattr(module, name))
    return found


def uuid7():
    ms, noise = time.time_ns() // 1_000_000, random.getrandbits(74)
    return str(uuid.UUID(int=ms << 80 | 7 << 76 | (noise >> 62 & 0xFFF) << 64 | 2 << 62 | noise & (1 << 62) - 1))
