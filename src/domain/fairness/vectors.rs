//! Makes `tests/fairness/vectors.json`, against which other programs check themselves, and holds the
//! code to it: a value that changes here breaks every proof that was ever handed out.

use super::*;
use crate::domain::envelope::CLIENT_NONCE_BYTES_MAX;
use crate::domain::split::{Cut, Split, Tier, WordStream};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

const PUBLISHED: &str = include_str!("../../../tests/fairness/vectors.json");
const PAGE: &str = include_str!("../../../docs/FAIRNESS.md");

/// 00 01 02 …: a secret that nobody mistakes for one.
fn counted() -> [u8; 32] {
    std::array::from_fn(|place| u8::try_from(place).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn frames() -> Value {
    let lists: [&[&[u8]]; 4] = [&[], &[b""], &[b"ab", b"", b"c"], &[b"a", b"bc"]];
    lists
        .iter()
        .map(|fields| {
            let mut framed = Vec::new();
            frame(fields, |bytes| framed.extend_from_slice(bytes));
            let fields: Vec<String> = fields.iter().map(|field| hex(field)).collect();
            json!({"fields": fields, "frame": hex(&framed)})
        })
        .collect()
}

fn leaves() -> Value {
    [("default", 0), ("default", 1_029), ("käufer-1", 1 << 40)]
        .iter()
        .map(|&(tenant, leaf_number)| {
            let seed = BatchSecret::new(counted()).server_seed(tenant, leaf_number);
            json!({
                "batch_secret": hex(&counted()),
                "tenant": tenant,
                "leaf_number": leaf_number,
                "server_seed": hex(&seed.reveal()),
                "leaf_hash": hex(&leaf_hash(tenant, leaf_number, &seed)),
                "id_random": hex(&seed.id_random(tenant, leaf_number)),
            })
        })
        .collect()
}

fn batches() -> Value {
    [("default", 0), ("default", 1)]
        .iter()
        .map(|&(tenant, batch_number)| {
            json!({
                "batch_secret": hex(&counted()),
                "tenant": tenant,
                "batch_number": batch_number,
                "batch_root": hex(&batch_root(&BatchSecret::new(counted()), tenant, batch_number)),
            })
        })
        .collect()
}

fn paths() -> Value {
    let tree = BatchTree::grow(&BatchSecret::new(counted()), "default", 0);
    [0, 5, 682, 1_023]
        .iter()
        .map(|&index| {
            let path: Vec<String> = tree.path(index).iter().map(|hash| hex(hash)).collect();
            json!({
                "leaf_hash": hex(&tree.leaf(index)),
                "index": index,
                "path": path,
                "batch_root": hex(&tree.root()),
            })
        })
        .collect()
}

fn split_seeds() -> Value {
    let nonces: [&[u8]; 3] = [b"", b"\x00", &[0xa5; CLIENT_NONCE_BYTES_MAX]];
    nonces
        .iter()
        .map(|nonce| {
            let id: [u8; 16] = std::array::from_fn(|place| 0xf0 - u8::try_from(place).unwrap());
            let printed = data_encoding::BASE32_NOPAD.encode(&id).to_lowercase();
            let seed = ServerSeed::new(counted());
            json!({
                "server_seed": hex(&counted()),
                "envelope_id": printed,
                "envelope_id_bytes": hex(&id),
                "client_nonce": hex(nonce),
                "split_seed": hex(&seed.split_seed(id, nonce).0),
            })
        })
        .collect()
}

fn seed_of(byte: u8) -> crate::domain::split::SplitSeed {
    crate::domain::split::SplitSeed([byte; 32])
}

fn words() -> Value {
    [0, 0x5e]
        .iter()
        .map(|&byte| {
            let mut words = WordStream::new(&seed_of(byte));
            // More than the four blocks that a generator may buffer.
            let words: Vec<String> = (0..40).map(|_| format!("{:016x}", words.next())).collect();
            json!({"split_seed": hex(&[byte; 32]), "words": words})
        })
        .collect()
}

fn integers() -> Value {
    // A quarter of all words is rejected for 3 × 2^61, none for a power of two.
    [1, 2, 6, 1_000, 9_000_000_000_000_000, 3 << 61, 1 << 63]
        .iter()
        .map(|&below: &u64| {
            let mut words = WordStream::new(&seed_of(7));
            let integers: Vec<String> = (0..16).map(|_| words.below(below).to_string()).collect();
            json!({
                "split_seed": hex(&[7; 32]),
                "below": below.to_string(),
                "integers": integers,
            })
        })
        .collect()
}

fn shuffles() -> Value {
    [1, 2, 52]
        .iter()
        .map(|&count| {
            let mut order: Vec<i64> = (0..count).collect();
            WordStream::new(&seed_of(8)).shuffle(&mut order);
            json!({"split_seed": hex(&[8; 32]), "count": count, "order": order})
        })
        .collect()
}

fn tiers(lines: &[(i64, u32)]) -> Split {
    let tiers = lines
        .iter()
        .map(|&(amount_minor, count)| Tier {
            amount_minor,
            count,
        })
        .collect();
    Split::Tiers { tiers }
}

/// Every rule: roomy, with bounds that bind, at the limits, and alone.
fn cuts() -> Vec<Cut> {
    let cut = |total_minor, share_count, min_minor, max_minor, split| Cut {
        total_minor,
        share_count,
        min_minor,
        max_minor,
        split,
    };
    vec![
        cut(1_003, 10, 1, 1_003, Split::Even),
        cut(10_000, 12, 1, 10_000, Split::DoubleMean),
        cut(10_000, 12, 700, 1_000, Split::DoubleMean),
        cut(12, 12, 1, 12, Split::DoubleMean),
        cut(500, 1, 1, 500, Split::DoubleMean),
        cut(
            9_000_000_000_000_000,
            5,
            1,
            9_000_000_000_000_000,
            Split::DoubleMean,
        ),
        cut(10_000, 12, 1, 10_000, Split::BrokenStick),
        cut(10_000, 12, 100, 1_200, Split::BrokenStick),
        cut(30, 20, 1, 2, Split::BrokenStick),
        cut(500, 1, 1, 500, Split::BrokenStick),
        cut(
            9_000_000_000_000_000,
            5,
            1,
            2_000_000_000_000_000,
            Split::BrokenStick,
        ),
        cut(1_078, 12, 8, 500, tiers(&[(500, 1), (88, 5), (23, 6)])),
    ]
}

fn cut_vectors() -> Value {
    cuts()
        .into_iter()
        .zip(0x10_u8..)
        .map(|(cut, byte)| {
            let amounts = cut.amounts(&seed_of(byte)).unwrap();
            let unshuffled = cut.unshuffled(&seed_of(byte));
            json!({
                "split_seed": hex(&[byte; 32]),
                "amounts_sha256": hex(&proof::amounts_sha256(&amounts)),
                "amounts": amounts,
                "unshuffled": unshuffled,
                "cut": cut,
            })
        })
        .collect()
}

/// The envelope of the page's example, and its like with another rule.
fn terms(split: ProofSplit) -> ProofTerms {
    let secret = BatchSecret::new(counted());
    let random = secret
        .server_seed("default", 1_029)
        .id_random("default", 1_029);
    let mut envelope_id = [0; 16];
    // 2026-11-23.
    envelope_id[..2].copy_from_slice(&20_780_u16.to_be_bytes());
    envelope_id[2..].copy_from_slice(&random);
    ProofTerms {
        tenant: "default".into(),
        envelope_id,
        leaf_number: 1_029,
        client_nonce: b"sixteen bytes!!!".to_vec(),
        currency_code: "CNY".into(),
        total_minor: 2_000,
        share_count: 8,
        min_minor: 1,
        max_minor: 2_000,
        split,
    }
}

fn proofs() -> Vec<Proof> {
    let secret = BatchSecret::new(counted());
    let lines = [(1_000, 1), (300, 2), (80, 5)];
    let tiers = tiers(&lines);
    let rules = [
        ProofSplit::DoubleMean,
        ProofSplit::BrokenStick,
        ProofSplit::Even,
        tiers.into(),
    ];
    let mut proofs: Vec<Proof> = rules
        .into_iter()
        .map(|rule| Proof::reveal(terms(rule), &secret, &[]).unwrap())
        .collect();
    let listed = [700, 300, 100, 100, 100, 100, 100, 500];
    proofs.push(Proof::reveal(terms(ProofSplit::Exclusive), &secret, &listed).unwrap());
    proofs
}

/// One vector a line, so that a difference can be read.
fn regenerated() -> String {
    let proofs = proofs().iter().map(|proof| json!(proof)).collect();
    let lists = [
        ("frames", frames()),
        ("leaves", leaves()),
        ("batches", batches()),
        ("paths", paths()),
        ("split_seeds", split_seeds()),
        ("words", words()),
        ("integers", integers()),
        ("shuffles", shuffles()),
        ("cuts", cut_vectors()),
        ("proofs", proofs),
    ];
    let lists: Vec<String> = lists
        .iter()
        .map(|(name, list)| {
            let lines: Vec<String> = list
                .as_array()
                .unwrap()
                .iter()
                .map(Value::to_string)
                .collect();
            format!("\"{name}\": [\n{}\n]", lines.join(",\n"))
        })
        .collect();
    format!("{{\n{}\n}}\n", lists.join(",\n"))
}

#[test]
fn the_published_vectors_are_those_of_this_code() {
    let regenerated = regenerated();
    assert!(
        regenerated == PUBLISHED,
        "tests/fairness/vectors.json differs; this code makes\n-----\n{regenerated}-----\n"
    );
}

#[test]
fn the_example_on_the_page_is_that_of_this_code() {
    let proof = &proofs()[0];
    let id = terms(ProofSplit::DoubleMean).envelope_id;
    let seed = ServerSeed::new(proof.server_seed.0);
    let amounts: Vec<String> = proof.amounts.iter().flatten().map(i64::to_string).collect();
    let table = [
        ("batch secret", hex(&counted())),
        ("tenant", proof.tenant.clone()),
        ("leaf number", proof.leaf_number.to_string()),
        ("server seed", hex(&proof.server_seed.0)),
        ("leaf hash", hex(&proof.leaf_hash.0)),
        ("batch root", hex(&proof.batch_root.0)),
        ("id", hex(&id)),
        ("printed id", proof.envelope_id.clone()),
        ("client nonce", hex(&proof.client_nonce.0)),
        (
            "split seed",
            hex(&seed.split_seed(id, &proof.client_nonce.0).0),
        ),
        ("amounts", amounts.join(", ")),
        ("amounts_sha256", hex(&proof.amounts_sha256.0)),
        ("digest", hex(&proof.digest.0)),
    ]
    .map(|(name, value)| format!("| {name} | `{value}` |\n"))
    .concat();
    assert!(
        PAGE.contains(&table),
        "docs/FAIRNESS.md lacks\n-----\n{table}-----\n"
    );
}
