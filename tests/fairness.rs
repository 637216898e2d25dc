//! Proofs are checked by another program, in another language, that was written from the page alone.
//!
//! `tests/fairness/verify.py` and `red-envelope verify` must agree on every proof: accept what was
//! revealed, and reject every change at the same step. Python is found by PATH; its standard
//! library is enough.

#![expect(
    clippy::unwrap_used,
    reason = "a test may unwrap: its panic is its report"
)]

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use red_envelope::domain::fairness::{
    BatchSecret, PROOF_AMOUNTS_MAX, Proof, ProofSplit, ProofTerms,
};
use red_envelope::domain::split::Tier;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs the Python program.
fn python(args: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fairness/verify.py");
    Command::new("python3")
        // It leaves no compiled files in the source tree.
        .arg("-B")
        .arg(program)
        .args(args)
        .output()
        .expect("python3 is on the PATH")
}

/// The Python program's word on each proof: the failed step, or nothing.
fn python_steps(proofs: &[String]) -> Vec<Option<String>> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proofs.jsonl");
    std::fs::write(&file, proofs.join("\n")).unwrap();
    let output = python(&["--lines", file.to_str().unwrap()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "", "it must speak, not stumble");
    let said = String::from_utf8(output.stdout).unwrap();
    let steps: Vec<Option<String>> = said
        .lines()
        .map(|line| {
            let failed = line.strip_prefix("FAILED ");
            assert!(failed.is_some() || line.starts_with("ok: "), "{line}");
            failed.map(|failed| failed.split(':').next().unwrap().to_owned())
        })
        .collect();
    let all_hold = steps.iter().all(Option::is_none);
    assert_eq!(output.status.code(), Some(i32::from(!all_hold)));
    assert_eq!(steps.len(), proofs.len());
    steps
}

/// A proof on one line.
fn line_of(proof: &Proof) -> String {
    serde_json::to_string(proof).unwrap()
}

/// Our own word on a proof.
fn own_step(proof: &str) -> Option<String> {
    Proof::from_json(proof)
        .and_then(|proof| proof.verify())
        .err()
        .map(|error| error.step().to_owned())
}

/// A proof of an envelope of 2,000 units for 8 shares, from a seeded batch.
fn proof_of(split: ProofSplit, listed: &[i64]) -> Proof {
    let tenant = "default";
    let secret = BatchSecret::new([0x42; 32]);
    let terms = ProofTerms {
        tenant: tenant.into(),
        envelope_id: id_of(&secret, tenant, 3_001),
        leaf_number: 3_001,
        client_nonce: vec![1, 2, 3, 4],
        currency_code: "CNY".into(),
        total_minor: 2_000,
        share_count: 8,
        min_minor: 1,
        max_minor: 2_000,
        split,
    };
    Proof::reveal(terms, &secret, listed).unwrap()
}

fn id_of(secret: &BatchSecret, tenant: &str, leaf_number: u64) -> [u8; 16] {
    let seed = secret.server_seed(tenant, leaf_number);
    let mut id = [0x51; 16];
    id[2..].copy_from_slice(&seed.id_random(tenant, leaf_number));
    id
}

fn tiers(lines: &[(i64, u32)]) -> ProofSplit {
    let tiers = lines
        .iter()
        .map(|&(amount_minor, count)| Tier {
            amount_minor,
            count,
        })
        .collect();
    ProofSplit::Tiers { tiers }
}

/// A proof of each rule.
fn proofs_of_all_rules() -> Vec<Proof> {
    vec![
        proof_of(ProofSplit::Even, &[]),
        proof_of(ProofSplit::DoubleMean, &[]),
        proof_of(ProofSplit::BrokenStick, &[]),
        proof_of(tiers(&[(1_000, 1), (300, 2), (80, 5)]), &[]),
        proof_of(
            ProofSplit::Exclusive,
            &[700, 300, 100, 100, 100, 100, 100, 500],
        ),
    ]
}

/// Another letter of the same alphabet at this place.
fn with_other_letter(text: &str, place: usize) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    letters[place] = if letters[place] == 'a' { 'b' } else { 'a' };
    letters.into_iter().collect()
}

/// Every way in which one field of a proof is changed, added or left out, named.
fn tampered(proof: &Proof) -> Vec<(String, Value)> {
    let whole = json!(proof);
    let mut changes = Vec::new();
    for (key, value) in whole.as_object().unwrap() {
        let mut change = |how: &str, value: Value| {
            let mut changed = whole.clone();
            changed[key] = value;
            changes.push((format!("{key} {how}"), changed));
        };
        match value {
            Value::Number(number) => {
                let number = number.as_i64().unwrap();
                change("one more", json!(number + 1));
                change("one less", json!(number - 1));
                change("a string", json!(number.to_string()));
            }
            Value::String(text) => {
                for place in [0, text.chars().count() / 2, text.chars().count() - 1] {
                    change(
                        &format!("letter {place}"),
                        json!(with_other_letter(text, place)),
                    );
                }
                change("shorter", json!(text[1..]));
                change("in capitals", json!(text.to_uppercase() + "A"));
            }
            Value::Array(list) => {
                let mut other = list.clone();
                other.rotate_left(1);
                change("rotated", json!(other));
                change("shorter", json!(list[1..]));
                change("null", Value::Null);
            }
            Value::Object(_) => {
                for rule in ["even", "double_mean", "broken_stick", "exclusive", "odd"] {
                    if value["rule"] != rule {
                        change(rule, json!({"rule": rule}));
                    }
                }
                let other = json!([{"amount_minor": 250, "count": 8}]);
                change("other tiers", json!({"rule": "tiers", "tiers": other}));
            }
            other => panic!("a proof has no {other}"),
        }
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove(key);
        changes.push((format!("{key} left out"), without));
    }
    let mut with_more = whole.clone();
    with_more["note"] = json!("trust me");
    changes.push(("a key more".into(), with_more));
    // Equal shares in another order are the same shares.
    changes.retain(|(_, changed)| *changed != whole);
    changes
}

#[test]
fn the_python_program_agrees_with_every_vector() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fairness/vectors.json");
    let output = python(&["--vectors", vectors.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("ok: "), "{said}");
}

#[test]
fn both_programs_accept_a_proof_of_every_rule() {
    let proofs: Vec<String> = proofs_of_all_rules().iter().map(line_of).collect();
    for (proof, step) in proofs.iter().zip(python_steps(&proofs)) {
        assert_eq!((own_step(proof), step), (None, None), "{proof}");
    }
}

#[test]
fn every_changed_field_fails_at_the_same_step_in_both_programs() {
    for proof in proofs_of_all_rules() {
        let changes = tampered(&proof);
        let changed: Vec<String> = changes.iter().map(|(_, value)| value.to_string()).collect();
        let python = python_steps(&changed);
        for (((change, _), proof), python) in changes.iter().zip(&changed).zip(python) {
            let own = own_step(proof);
            assert!(own.is_some(), "{change} passes in {proof}");
            assert_eq!(python, own, "{change} in {proof}");
        }
    }
}

#[test]
fn a_changed_field_fails_at_its_own_step() {
    let proof = proof_of(ProofSplit::DoubleMean, &[]);
    let changes = tampered(&proof);
    for (change, step) in [
        ("version one more", "version"),
        ("leaf_count_per_batch one less", "version"),
        ("envelope_id shorter", "envelope_id"),
        ("tenant letter 0", "leaf"),
        ("leaf_number one more", "leaf"),
        ("server_seed letter 0", "leaf"),
        ("leaf_hash letter 0", "leaf"),
        ("path rotated", "root"),
        ("path shorter", "root"),
        ("batch_root letter 0", "root"),
        ("envelope_id letter 13", "id"),
        ("envelope_id letter 0", "amounts"),
        ("client_nonce letter 0", "amounts"),
        ("total_minor one more", "amounts"),
        ("amounts rotated", "amounts"),
        ("amounts left out", "amounts"),
        ("share_count one more", "amounts"),
        ("split broken_stick", "amounts"),
        ("split other tiers", "amounts"),
        ("split exclusive", "digest"),
        ("amounts_sha256 letter 0", "amounts_sha256"),
        ("currency_code letter 0", "digest"),
        ("digest letter 0", "digest"),
        ("digest left out", "format"),
        ("a key more", "format"),
    ] {
        let (_, value) = changes
            .iter()
            .find(|(name, _)| name == change)
            .unwrap_or_else(|| panic!("there is no change {change}"));
        assert_eq!(
            own_step(&value.to_string()).as_deref(),
            Some(step),
            "{change}"
        );
    }
}

#[test]
fn a_proof_of_many_shares_gives_their_hash_only() {
    let secret = BatchSecret::new([0x43; 32]);
    let share_count = PROOF_AMOUNTS_MAX + 1;
    let terms = ProofTerms {
        tenant: "default".into(),
        envelope_id: id_of(&secret, "default", 0),
        leaf_number: 0,
        client_nonce: Vec::new(),
        currency_code: "POINTS".into(),
        total_minor: 7_000_001,
        share_count,
        min_minor: 100,
        max_minor: 1_500,
        split: ProofSplit::BrokenStick,
    };
    let proof = Proof::reveal(terms, &secret, &[]).unwrap();
    assert_eq!(proof.amounts, None);
    let verified = proof.verify().unwrap();
    assert_eq!(verified.amounts.len(), share_count as usize);
    assert_eq!(verified.amounts.iter().sum::<i64>(), 7_000_001);
    let mut changed = proof.clone();
    changed.amounts_sha256.0[31] ^= 1;
    let proofs = [line_of(&proof), line_of(&changed)];
    let steps = [None, Some("amounts_sha256".to_owned())];
    assert_eq!(proofs.each_ref().map(|proof| own_step(proof)), steps);
    assert_eq!(python_steps(&proofs), steps);
}

/// Envelopes of every rule with terms drawn from a fixed seed, from roomy to tight.
fn drawn_proofs(count: usize) -> Vec<Proof> {
    let mut rng = ChaCha20Rng::from_seed([0x44; 32]);
    let mut drawn = |below: u64| i64::try_from(rng.next_u64() % below).unwrap();
    (0..count)
        .map(|number| {
            let share_count = drawn(60) + 1;
            let min_minor = drawn(500) + 1;
            let room = drawn(10_u64.pow(u32::try_from(number % 13).unwrap())) + drawn(3);
            let max_minor = min_minor + room;
            let total_minor = share_count * min_minor + share_count * room / 1_000 * drawn(1_001);
            let secret: [u8; 32] = std::array::from_fn(|_| drawn(256).to_le_bytes()[0]);
            let secret = BatchSecret::new(secret);
            let leaf_number = drawn(1 << 30).cast_unsigned();
            let nonce_bytes = drawn(65);
            let terms = ProofTerms {
                tenant: format!("tenant-{number}"),
                envelope_id: id_of(&secret, &format!("tenant-{number}"), leaf_number),
                leaf_number,
                client_nonce: (0..nonce_bytes)
                    .map(|_| drawn(256).to_le_bytes()[0])
                    .collect(),
                currency_code: "JPY".into(),
                total_minor,
                share_count: u32::try_from(share_count).unwrap(),
                min_minor,
                max_minor,
                split: match number % 3 {
                    0 => ProofSplit::Even,
                    1 => ProofSplit::DoubleMean,
                    _ => ProofSplit::BrokenStick,
                },
            };
            Proof::reveal(terms, &secret, &[]).unwrap()
        })
        .collect()
}

#[test]
fn both_programs_derive_the_same_shares_from_terms_of_every_shape() {
    let proofs: Vec<String> = drawn_proofs(300).iter().map(line_of).collect();
    for (proof, step) in proofs.iter().zip(python_steps(&proofs)) {
        assert_eq!(step, None, "{proof}");
    }
}

#[test]
fn the_python_program_compares_with_what_was_promised() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("proof.json");
    let proof = proof_of(ProofSplit::DoubleMean, &[]);
    // Indented for people, as `red-envelope proof` writes it.
    std::fs::write(&file, proof.to_json()).unwrap();
    let (leaf, root) = (json!(proof.leaf_hash), json!(proof.batch_root));
    let (leaf, root) = (leaf.as_str().unwrap(), root.as_str().unwrap());
    let file = file.to_str().unwrap();
    let kept = python(&[file, "--leaf", leaf, "--root", root]);
    assert!(kept.status.success());
    let other = with_other_letter(leaf, 5);
    for broken in [["--leaf", other.as_str()], ["--root", leaf]] {
        let output = python(&[&[file], &broken[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("FAILED promised: "));
    }
}
