#!/usr/bin/env python3
"""A second implementation of the digest of an inventory, from its definition in src/domain/digest.rs.

It checks the published vectors, and it is what their expected values come from, so that service and vectors cannot be
wrong in the same way. Standard library only.

    digest.py           checks tests/vectors/digest.json; exit status 1 when a value differs
    digest.py --write   writes the expected values into it
"""

import json
import pathlib
import struct
import sys

SEED_A = 0x51070CA5
SEED_B = 0x0DDBA115
WORD = 0xFFFFFFFF
VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "digest.json"

# Values of the reference implementation of MurmurHash3_x86_32, as widely published: (seed, input, hash).
PUBLISHED = [
    (0, b"", 0x00000000),
    (1, b"", 0x514E28B7),
    (0xFFFFFFFF, b"", 0x81F16F39),
    (0, b"\0\0\0\0", 0x2362F9DE),
    (0x9747B28C, b"aaaa", 0x5A97808A),
    (0x9747B28C, b"abc", 0xC84A62DD),
    (0x9747B28C, b"Hello, world!", 0x24884CBA),
]


def rotated(word, bits):
    return ((word << bits) | (word >> (32 - bits))) & WORD


def murmur3_x86_32(seed, octets):
    mixed = seed
    whole = len(octets) // 4 * 4
    for (word,) in struct.iter_unpack("<I", octets[:whole]):
        word = rotated(word * 0xCC9E2D51 & WORD, 15) * 0x1B873593 & WORD
        mixed = (rotated(mixed ^ word, 13) * 5 + 0xE6546B64) & WORD
    if octets[whole:]:
        word = int.from_bytes(octets[whole:], "little")
        mixed ^= rotated(word * 0xCC9E2D51 & WORD, 15) * 0x1B873593 & WORD
    mixed ^= len(octets) & WORD
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & WORD
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & WORD
    return mixed ^ mixed >> 16


def digest(slots):
    """Returns both lanes and the folded digest. An entry is a filled slot: slot, item_code, count, optionally attributes_hex."""
    a = b = 0
    for entry in slots:
        head = struct.pack("<III", entry["slot"], entry["item_code"], entry["count"])
        encoded = head + bytes.fromhex(entry.get("attributes_hex", ""))
        a = (a + murmur3_x86_32(SEED_A, encoded)) & WORD
        b = (b + murmur3_x86_32(SEED_B, encoded)) & WORD
    return {"a": a, "b": b, "folded": a ^ b}


def written(vectors):
    """Returns the vectors as JSON, with one slot per line."""
    blocks = []
    for vector in vectors:
        slots = ",\n".join("      " + json.dumps(entry) for entry in vector["slots"])
        slots = f"[\n{slots}\n    ]" if slots else "[]"
        expected = json.dumps(digest(vector["slots"]))
        blocks.append(f'  {{\n    "name": {json.dumps(vector["name"])},\n    "slots": {slots},\n    "expected": {expected}\n  }}')
    return "[\n" + ",\n".join(blocks) + "\n]\n"


def main(arguments):
    failed = 0
    for seed, octets, expected in PUBLISHED:
        if murmur3_x86_32(seed, octets) != expected:
            print(f"this is not MurmurHash3: seed {seed:#x}, {octets!r} should give {expected:#010x}")
            failed += 1
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    if arguments == ["--write"]:
        VECTORS.write_text(written(vectors), encoding="utf-8")
        return 1 if failed else 0
    for vector in vectors:
        found = digest(vector["slots"])
        if found != vector["expected"]:
            print(f"{vector['name']}: expected {vector['expected']}, found {found}")
            failed += 1
    print(f"digest vectors: {len(vectors)} checked, {failed} wrong")
    return 1 if failed or not vectors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
