"""Compares every step of verify.py with published values: docs/FAIRNESS.md, section 11."""

def check_vectors(page, vectors):
    """Every step of the program `page` against the values; gives the number of values compared."""
    compared = 0

    def same(what, mine, published):
        nonlocal compared
        compared += 1
        page.need(mine == published, what, f"{mine!r} instead of {published!r}")

    for v in vectors.get("frames", ()):
        fields = [bytes.fromhex(field) for field in v["fields"]]
        same("frame", page.frame(*fields).hex(), v["frame"])
    for v in vectors.get("leaves", ()):
        tenant, number = v["tenant"].encode(), v["leaf_number"]
        seed = page.server_seed_of(bytes.fromhex(v["batch_secret"]), tenant, number)
        same("server_seed", seed.hex(), v["server_seed"])
        same("leaf_hash", page.leaf_hash_of(tenant, number, seed).hex(), v["leaf_hash"])
        same("id_random", page.id_random_of(seed, tenant, number).hex(), v["id_random"])
    for v in vectors.get("batches", ()):
        tenant = v["tenant"].encode()
        root = page.batch_root_of(bytes.fromhex(v["batch_secret"]), tenant, v["batch_number"])
        same("batch_root", root.hex(), v["batch_root"])
    for v in vectors.get("paths", ()):
        path = [bytes.fromhex(sibling) for sibling in v["path"]]
        root = page.root_from_path(bytes.fromhex(v["leaf_hash"]), v["index"], path)
        same("path", root.hex(), v["batch_root"])
    for v in vectors.get("split_seeds", ()):
        envelope_id = page.decode_id(v["envelope_id"])
        same("envelope_id", envelope_id.hex(), v["envelope_id_bytes"])
        seed = bytes.fromhex(v["server_seed"])
        split_seed = page.split_seed_of(seed, envelope_id, bytes.fromhex(v["client_nonce"]))
        same("split_seed", split_seed.hex(), v["split_seed"])
    for v in vectors.get("words", ()):
        words = page.Words(bytes.fromhex(v["split_seed"]))
        same("words", [f"{words.next():016x}" for _ in v["words"]], v["words"])
    for v in vectors.get("integers", ()):
        words = page.Words(bytes.fromhex(v["split_seed"]))
        n = int(v["below"])
        same("integers", [str(words.below(n)) for _ in v["integers"]], v["integers"])
    for v in vectors.get("shuffles", ()):
        order = list(range(v["count"]))
        page.Words(bytes.fromhex(v["split_seed"])).shuffle(order)
        same("shuffle", order, v["order"])
    for v in vectors.get("cuts", ()):
        cut = v["cut"]
        terms = (cut["total_minor"], cut["share_count"], cut["min_minor"], cut["max_minor"])
        terms += (page.read_split(cut["split"]),)
        page.check_terms(*terms)
        seed = bytes.fromhex(v["split_seed"])
        same("unshuffled", page.shares(page.Words(seed), *terms), v["unshuffled"])
        amounts = page.derive(seed, *terms)
        same("amounts", amounts, v["amounts"])
        same("amounts_sha256", page.amounts_hash(amounts).hex(), v["amounts_sha256"])
    for v in vectors.get("proofs", ()):
        page.verify(v)
        compared += 1
    page.need(compared > 0, "vectors", "there are none")
    return compared
