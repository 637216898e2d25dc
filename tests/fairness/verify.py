#!/usr/bin/env python3
"""Checks the fairness of a closed red envelope, with Python's standard library only.

Written from docs/FAIRNESS.md alone, so that it fails where the page is not enough; section numbers
below are the page's. It shares no code with the server, ChaCha20 included.

    python3 verify.py proof.json [--leaf HEX] [--root HEX]
    python3 verify.py --lines proofs.jsonl
    python3 verify.py --vectors vectors.json

Exit code 0 if all is well; 1, with the failed step, if not; 2 for a wrong command line.
"""

import argparse
import base64
import hashlib
import hmac
import json
import string
import struct
import sys

VERSION = 1
LEAVES_PER_BATCH = 1024
DEPTH = 10
NONCE_BYTES_MAX = 64
SHARE_COUNT_MAX = 10_000_000
AMOUNT_MAX = 9_000_000_000_000_000
TIER_COUNT_MAX = 1_000
LISTED_MAX = 10_000
ATTEMPTS_MAX = 16
WORD = 1 << 64


class Failed(Exception):
    """A step of section 9 that failed."""
    def __init__(self, step, why):
        super().__init__(f"{step}: {why}")
        self.step = step


def need(holds, step, why):
    if not holds:
        raise Failed(step, why)


# ---- section 2: notation


def u32(x):
    return struct.pack(">I", x)


def u64(x):
    return struct.pack(">Q", x)


def i64(x):
    return struct.pack(">q", x)


def frame(*fields):
    return b"".join(u32(len(field)) + field for field in fields)


def sha256(message):
    return hashlib.sha256(message).digest()


def hmac256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


# ---- section 3: commitment


def server_seed_of(secret, tenant, leaf_number):
    return hmac256(secret, frame(b"red-envelope/v1/server-seed", tenant, u64(leaf_number)))


def leaf_hash_of(tenant, leaf_number, server_seed):
    return sha256(b"\0" + frame(b"red-envelope/v1/leaf", tenant, u64(leaf_number), server_seed))


def node_hash(left, right):
    return sha256(b"\1" + left + right)


def batch_root_of(secret, tenant, batch_number):
    first = batch_number * LEAVES_PER_BATCH
    level = [
        leaf_hash_of(tenant, number, server_seed_of(secret, tenant, number))
        for number in range(first, first + LEAVES_PER_BATCH)
    ]
    while len(level) > 1:
        level = [node_hash(*level[i : i + 2]) for i in range(0, len(level), 2)]
    return level[0]


def root_from_path(leaf_hash, index, path):
    found = leaf_hash
    for level, sibling in enumerate(path):
        if index >> level & 1 == 0:
            found = node_hash(found, sibling)
        else:
            found = node_hash(sibling, found)
    return found


# ---- section 4: envelope


def id_random_of(server_seed, tenant, leaf_number):
    message = frame(b"red-envelope/v1/envelope-id", tenant, u64(leaf_number))
    return hmac256(server_seed, message)[:14]


def split_seed_of(server_seed, envelope_id, client_nonce):
    return hmac256(server_seed, frame(b"red-envelope/v1/split-seed", envelope_id, client_nonce))


def decode_id(text):
    """The 16 bytes of a printed id."""
    alphabet = string.ascii_lowercase + "234567"
    proper = len(text) == 26 and all(letter in alphabet for letter in text)
    need(proper, "envelope_id", "not 26 characters of a-z and 2-7")
    decoded = base64.b32decode(text.upper() + "=" * 6)
    again = base64.b32encode(decoded).decode().rstrip("=").lower()
    need(again == text, "envelope_id", "the last two bits are not zero")
    return decoded


# ---- section 5: words and integers


def chacha20_block(key_words, counter):
    """One block of 64 bytes; the nonce is zero."""
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *key_words]
    start += [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    x = list(start)

    def quarter(a, b, c, d):
        for to, by, turned, left in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[to] = (x[to] + x[by]) & 0xFFFFFFFF
            t = x[turned] ^ x[to]
            x[turned] = (t << left | t >> (32 - left)) & 0xFFFFFFFF

    for _ in range(10):
        quarter(0, 4, 8, 12)
        quarter(1, 5, 9, 13)
        quarter(2, 6, 10, 14)
        quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15)
        quarter(1, 6, 11, 12)
        quarter(2, 7, 8, 13)
        quarter(3, 4, 9, 14)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, start)))


class Words:
    """The words of one split seed, in order."""
    def __init__(self, split_seed):
        self._words = self._stream(struct.unpack("<8I", split_seed))

    @staticmethod
    def _stream(key_words):
        counter = 0
        while True:
            yield from struct.unpack("<8Q", chacha20_block(key_words, counter))
            counter += 1

    def next(self):
        return next(self._words)

    def below(self, n):
        rejected_below = WORD % n
        for attempt in range(1, ATTEMPTS_MAX + 1):
            product = self.next() * n
            if product % WORD >= rejected_below or attempt == ATTEMPTS_MAX:
                return product // WORD

    def between(self, low, high):
        return low + self.below(high - low + 1)

    # ---- section 6: shuffle

    def shuffle(self, a):
        for i in range(len(a) - 1, 0, -1):
            j = self.below(i + 1)
            a[i], a[j] = a[j], a[i]


# ---- section 7: rules


def check_terms(total, count, least, most, split):
    need(1 <= total <= AMOUNT_MAX, "terms", "the total is out of range")
    need(1 <= count <= SHARE_COUNT_MAX, "terms", "the number of shares is out of range")
    need(1 <= least <= most <= AMOUNT_MAX, "terms", "the bounds of a share are out of range")
    need(count * least <= total <= count * most, "terms", "the total does not fit the bounds")
    if split["rule"] == "tiers":
        tiers = split["tiers"]
        need(1 <= len(tiers) <= TIER_COUNT_MAX, "terms", "the number of tiers is out of range")
        for amount, shares in tiers:
            need(shares >= 1, "terms", "a tier has no shares")
            need(least <= amount <= most, "terms", "a tier is outside the bounds")
        counted = sum(shares for _, shares in tiers)
        summed = sum(amount * shares for amount, shares in tiers)
        need(counted == count, "terms", "the counts of the tiers do not add up")
        need(summed == total, "terms", "the amounts of the tiers do not add up")


def even(total, count):
    mean, remainder = divmod(total, count)
    return [mean + 1] * remainder + [mean] * (count - remainder)


def double_mean(words, total, count, least, most):
    a = []
    left = total
    for to_go in range(count, 1, -1):
        low = max(least, left - (to_go - 1) * most)
        high = min(most, 2 * left // to_go, left - (to_go - 1) * least)
        a.append(words.between(low, high))
        left -= a[-1]
    a.append(left)
    return a


def broken_stick(words, total, count, least, most):
    stick = total - count * least
    points = sorted(words.between(0, stick) for _ in range(count - 1))
    points = [0, *points, stick]
    x = [points[i + 1] - points[i] for i in range(count)]
    room = most - least
    if any(spacing > room for spacing in x):
        y = [min(spacing, room) for spacing in x]
        cut_off = sum(x) - sum(y)
        free = sum(room - kept for kept in y)
        so_far = 0
        for i, kept in enumerate(y):
            before, so_far = so_far, so_far + room - kept
            x[i] = kept + cut_off * so_far // free - cut_off * before // free
    return [least + spacing for spacing in x]


def shares(words, total, count, least, most, split):
    """The shares before the shuffle."""
    rule = split["rule"]
    if rule == "even":
        return even(total, count)
    if rule == "double_mean":
        return double_mean(words, total, count, least, most)
    if rule == "broken_stick":
        return broken_stick(words, total, count, least, most)
    return [amount for amount, shares_of_it in split["tiers"] for _ in range(shares_of_it)]


def derive(split_seed, total, count, least, most, split):
    words = Words(split_seed)
    a = shares(words, total, count, least, most, split)
    words.shuffle(a)
    return a


# ---- section 8: the proof


def amounts_hash(amounts):
    digest = hashlib.sha256()
    for amount in amounts:
        digest.update(struct.pack("<q", amount))
    return digest.digest()


class Fields:
    """Reads typed values out of a JSON object."""
    def __init__(self, found, keys, optional=()):
        need(isinstance(found, dict), "format", "not an object")
        for key in found:
            need(key in keys, "format", f"unknown key {key!r}")
        for key in keys:
            need(key in found or key in optional, "format", f"no key {key!r}")
        self.found = found

    def text(self, key):
        need(isinstance(self.found[key], str), "format", f"{key} is not a string")
        return self.found[key]

    def number(self, key, low, high):
        return whole(self.found[key], key, low, high)

    def unsigned(self, key, bits):
        return self.number(key, 0, (1 << bits) - 1)

    def signed(self, key):
        return self.number(key, -(1 << 63), (1 << 63) - 1)

    def hex(self, key, size=None):
        return from_hex(self.found[key], key, size)


def whole(value, key, low, high):
    # In Python true is an int, too.
    need(type(value) is int and low <= value <= high, "format", f"{key} is not such an integer")
    return value


def from_hex(value, key, size=None):
    digits = isinstance(value, str) and all(letter in "0123456789abcdef" for letter in value)
    need(digits and len(value) % 2 == 0, "format", f"{key} is not hex")
    found = bytes.fromhex(value)
    need(size is None or len(found) == size, "format", f"{key} has the wrong length")
    return found


def read_split(found):
    need(isinstance(found, dict) and "rule" in found, "format", "split has no rule")
    rule = found["rule"]
    known = ("even", "double_mean", "broken_stick", "tiers", "exclusive")
    need(rule in known, "format", "unknown rule")
    if rule != "tiers":
        return {"rule": rule}
    need(isinstance(found.get("tiers"), list), "format", "tiers is not a list")
    tiers = []
    for line in found["tiers"]:
        fields = Fields(line, ("amount_minor", "count"))
        tiers.append((fields.signed("amount_minor"), fields.unsigned("count", 32)))
    return {"rule": rule, "tiers": tiers}


def no_key_twice(pairs):
    found = dict(pairs)
    need(len(found) == len(pairs), "format", "a key is there twice")
    return found


def parse(text):
    try:
        return json.loads(text, object_pairs_hook=no_key_twice)
    except ValueError as error:
        raise Failed("format", f"not JSON: {error}") from error


class Proof:
    """A proof of the right types; nothing of it is believed yet."""
    KEYS = (
        "version tenant envelope_id leaf_number leaf_count_per_batch leaf_hash batch_root path "
        "server_seed client_nonce currency_code total_minor share_count min_minor max_minor split "
        "amounts amounts_sha256 digest"
    ).split()

    def __init__(self, found):
        fields = Fields(found, self.KEYS, optional=("amounts",))
        self.version = fields.unsigned("version", 32)
        self.tenant = fields.text("tenant").encode()
        self.envelope_id = fields.text("envelope_id")
        self.leaf_number = fields.unsigned("leaf_number", 64)
        self.leaf_count_per_batch = fields.unsigned("leaf_count_per_batch", 32)
        self.leaf_hash = fields.hex("leaf_hash", 32)
        self.batch_root = fields.hex("batch_root", 32)
        need(isinstance(found["path"], list), "format", "path is not a list")
        self.path = [from_hex(sibling, "path", 32) for sibling in found["path"]]
        self.server_seed = fields.hex("server_seed", 32)
        self.client_nonce = fields.hex("client_nonce")
        self.currency_code = fields.text("currency_code").encode()
        self.total = fields.signed("total_minor")
        self.count = fields.unsigned("share_count", 32)
        self.least = fields.signed("min_minor")
        self.most = fields.signed("max_minor")
        self.split = read_split(found["split"])
        self.amounts = found.get("amounts")
        if self.amounts is not None:
            need(isinstance(self.amounts, list), "format", "amounts is not a list")
            for amount in self.amounts:
                whole(amount, "amounts", -(1 << 63), (1 << 63) - 1)
        self.amounts_sha256 = fields.hex("amounts_sha256", 32)
        self.digest = fields.hex("digest", 32)

    def terms(self):
        return self.total, self.count, self.least, self.most, self.split

    def digest_of(self, envelope_id):
        fields = [
            b"red-envelope/v1/proof",
            self.tenant,
            envelope_id,
            u64(self.leaf_number),
            self.batch_root,
            self.server_seed,
            self.client_nonce,
            self.currency_code,
            i64(self.total),
            u64(self.count),
            i64(self.least),
            i64(self.most),
            self.amounts_sha256,
            self.split["rule"].encode(),
        ]
        for amount, count in self.split.get("tiers", ()):
            fields += [i64(amount), u64(count)]
        return sha256(frame(*fields))


# ---- section 9: verification


def checked_amounts(proof, envelope_id):
    """The amounts of a proof whose terms hold."""
    total, count, least, most, split = proof.terms()
    told = proof.amounts
    if split["rule"] == "exclusive":
        need(told is not None, "amounts", "they are not listed")
        need(len(told) == count, "amounts", "they are not as many as there are shares")
        need(all(least <= a <= most for a in told), "amounts", "one is out of bounds")
        need(sum(told) == total, "amounts", "they do not add up")
        return told
    need((told is not None) == (count <= LISTED_MAX), "amounts", "listed or not, against the rule")
    seed = split_seed_of(proof.server_seed, envelope_id, proof.client_nonce)
    derived = derive(seed, total, count, least, most, split)
    need(told is None or told == derived, "amounts", "they are not those that the seed gives")
    return derived


def verify(found):
    proof = Proof(found)
    need(proof.version == VERSION, "version", "unknown version")
    need(proof.leaf_count_per_batch == LEAVES_PER_BATCH, "version", "unknown size of batches")
    envelope_id = decode_id(proof.envelope_id)
    need(len(proof.client_nonce) <= NONCE_BYTES_MAX, "client_nonce", "too long")
    leaf_hash = leaf_hash_of(proof.tenant, proof.leaf_number, proof.server_seed)
    need(leaf_hash == proof.leaf_hash, "leaf", "it does not commit to this seed")
    need(len(proof.path) == DEPTH, "root", "the path has the wrong length")
    root = root_from_path(leaf_hash, proof.leaf_number % LEAVES_PER_BATCH, proof.path)
    need(root == proof.batch_root, "root", "the path leads elsewhere")
    id_random = id_random_of(proof.server_seed, proof.tenant, proof.leaf_number)
    need(id_random == envelope_id[2:], "id", "it does not follow from the seed")
    check_terms(*proof.terms())
    amounts = checked_amounts(proof, envelope_id)
    need(amounts_hash(amounts) == proof.amounts_sha256, "amounts_sha256", "another hash")
    need(proof.digest_of(envelope_id) == proof.digest, "digest", "something was changed")
    return proof


# ---- the command line


def arguments():
    parser = argparse.ArgumentParser(description="Checks the fairness of a closed red envelope.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("proof", nargs="?", help="the proof of an envelope, as JSON")
    what.add_argument("--lines", metavar="FILE", help="a proof a line; tells the outcome of each")
    what.add_argument("--vectors", metavar="FILE", help="check this program by test vectors")
    parser.add_argument("--leaf", metavar="HEX", help="the leaf hash that was returned at creation")
    parser.add_argument("--root", metavar="HEX", help="the root that was published for the batch")
    return parser.parse_args()


def outcome(text, args):
    """Whether this proof holds, and what there is to say."""
    try:
        proof = verify(parse(text))
        for name, given, proven in (
            ("leaf", args.leaf, proof.leaf_hash),
            ("root", args.root, proof.batch_root),
        ):
            kept = given is None or given.lower() == proven.hex()
            need(kept, "promised", f"the {name} of this proof is not the one that you were given")
    except Failed as failed:
        return False, f"FAILED {failed}"
    except (UnicodeError, RecursionError) as error:
        return False, f"FAILED format: {error}"
    said = f"ok: {proof.count} shares of {proof.total} {proof.currency_code.decode()} minor units"
    said += f", leaf {proof.leaf_number} is {proof.leaf_hash.hex()}"
    if args.leaf is None:
        said += "; compare it with the one that was returned when the envelope was created"
    return True, said


def main():
    args = arguments()
    try:
        with open(args.vectors or args.lines or args.proof, encoding="utf-8") as file:
            text = file.read()
        if args.vectors:
            # Kept apart, so that whoever checks a proof needs this file only.
            from vectors import check_vectors

            said = [(True, f"ok: {check_vectors(sys.modules[__name__], parse(text))} values agree")]
        else:
            said = [outcome(each, args) for each in (text.splitlines() if args.lines else [text])]
    except (Failed, OSError, UnicodeError) as error:
        said = [(False, f"FAILED {error}")]
    for _, line in said:
        print(line)
    return 0 if all(holds for holds, _ in said) else 1


if __name__ == "__main__":
    sys.exit(main())
