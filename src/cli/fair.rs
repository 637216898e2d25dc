//! `proof` and `verify`: fetch a fairness proof, check it without any server.

use std::io::Read;
use std::path::Path;

use data_encoding::HEXLOWER;
use red_envelope_proto::v1;
use serde_json::{Value, json};

use super::args::{See, Verify};
use super::call::Client;
use super::words::{self, Style, Tone};
use super::{EXIT_NO, Failed, Told};
use crate::config::Environment;
use crate::domain::fairness::{Proof, Verified};
use crate::domain::money::{Currencies, print_amount};

/// A proof of 10,000 listed shares is 170 KB; one of 1,000 tiers 60 KB.
const PROOF_BYTES_MAX: u64 = 4 << 20;
/// Shares that `verify` prints for people.
const SHOWN_AMOUNTS_MAX: usize = 20;

pub(super) async fn proof(args: See, environment: &Environment) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::GetFairnessProofRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope,
        viewer: args.viewer,
        group_id: args.group,
        group_ticket: Vec::new(),
    };
    let envelopes = client.envelopes();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.get_fairness_proof(request).await }
        })
        .await
        .map_err(Failed::not_closed_yet)?;
    let json = serde_json::from_str(&reply.proof_json).unwrap_or(Value::Null);
    Ok(Told::ok(format!("{}\n", reply.proof_json.trim_end()), json))
}

impl Failed {
    /// A proof too early is the usual case: says how to wait for it.
    fn not_closed_yet(mut self) -> Self {
        if self.reason == "NOT_CLOSED" {
            self.sentence.push_str(
                ", within seconds of the last share or of the end. `red-envelope watch` waits for \
                 that",
            );
        }
        self
    }
}

pub(super) fn verify(args: &Verify, style: Style) -> Result<Told, Failed> {
    let text = read(&args.file)
        .map_err(|why| Failed::no_input(format!("{} can't be read: {why}", args.file.display())))?;
    let checked = Proof::from_json(&text).and_then(|proof| {
        let verified = proof.verify()?;
        Ok((proof, verified))
    });
    let told = match checked {
        Ok((proof, verified)) => {
            let json = json!({
                "holds": true,
                "envelope_id": proof.envelope_id,
                "leaf_number": proof.leaf_number,
                "leaf_hash": HEXLOWER.encode(&verified.leaf_hash),
                "batch_number": verified.batch_number,
                "batch_root": HEXLOWER.encode(&verified.batch_root),
                "share_count": proof.share_count,
                "total_minor": proof.total_minor,
                "currency_code": proof.currency_code,
            });
            Told::ok(held_words(&proof, &verified, style), json)
        }
        Err(broken) => {
            let verdict = style.tone(Tone::Bad, "The proof does not hold");
            let words = format!("{verdict}, at step `{}`: {broken}.\n", broken.step());
            let json = json!({
                "holds": false,
                "step": broken.step(),
                "message": broken.to_string(),
            });
            Told::ok(words, json).ending(EXIT_NO)
        }
    };
    Ok(told)
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let from: Box<dyn Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file)?)
    };
    let read = from.take(PROOF_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > PROOF_BYTES_MAX {
        let why = format!("it is larger than {PROOF_BYTES_MAX} bytes");
        return Err(std::io::Error::other(why));
    }
    Ok(text)
}

/// Every step that held, and what the reader must compare by hand: a proof can't know what was
/// promised.
fn held_words(proof: &Proof, verified: &Verified, style: Style) -> String {
    let currencies = Currencies::default();
    let code = words::clean(&proof.currency_code);
    let decimals = currencies.find(&code).map_or(0, |c| currencies.decimals(c));
    let amount = |minor| print_amount(minor, decimals);
    let shown: Vec<String> = verified
        .amounts
        .iter()
        .take(SHOWN_AMOUNTS_MAX)
        .map(|minor| amount(*minor))
        .collect();
    let more = if verified.amounts.len() > SHOWN_AMOUNTS_MAX {
        " …"
    } else {
        ""
    };
    let good = style.tone(Tone::Good, "ok");
    let mut text = String::new();
    let batch = verified.batch_number;
    for step in [
        format!(
            "the server's seed is the one that leaf {} committed to",
            proof.leaf_number
        ),
        format!("the leaf lies in batch {batch} under the root below"),
        "the envelope's id follows from the leaf".to_owned(),
        format!(
            "the shares follow from the seed, the sender's nonce and the terms: {} of them",
            verified.amounts.len()
        ),
        format!(
            "they add up to {} {code}, and nothing was changed",
            amount(proof.total_minor)
        ),
    ] {
        text.push_str(&format!("  {good}  {step}\n"));
    }
    text.push_str(&format!(
        "{} for envelope {}.\n  shares      {}{more} {code}\n  leaf hash   {}\n  batch root  {}\n\
         Compare both with what `red-envelope send` or `show --json` told before the first grab.\n",
        style.tone(Tone::Strong, "The proof holds"),
        proof.envelope_id,
        shown.join(" "),
        HEXLOWER.encode(&verified.leaf_hash),
        HEXLOWER.encode(&verified.batch_root),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::super::EXIT_NO_INPUT;
    use super::*;
    use crate::domain::fairness::{BatchSecret, ProofSplit, ProofTerms};

    fn written() -> String {
        let secret = BatchSecret::new([7; 32]);
        let random = secret.server_seed("default", 3).id_random("default", 3);
        let mut envelope_id = [0; 16];
        envelope_id[2..].copy_from_slice(&random);
        let terms = ProofTerms {
            tenant: "default".to_owned(),
            envelope_id,
            leaf_number: 3,
            client_nonce: vec![1, 2],
            currency_code: "CNY".to_owned(),
            total_minor: 1_000,
            share_count: 4,
            min_minor: 1,
            max_minor: 1_000,
            split: ProofSplit::DoubleMean,
        };
        Proof::reveal(terms, &secret, &[]).unwrap().to_json()
    }

    fn verified(text: &str) -> Told {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proof.json");
        std::fs::write(&file, text).unwrap();
        verify(&Verify { file, json: false }, Style::default()).unwrap()
    }

    #[test]
    fn a_proof_that_holds_is_told_step_by_step() {
        let told = verified(&written());
        assert_eq!(told.exit, 0);
        assert!(
            told.words
                .contains("ok  the server's seed is the one that leaf 3 committed to\n")
        );
        assert!(
            told.words
                .contains("ok  they add up to 10.00 CNY, and nothing was changed\n")
        );
        assert_eq!(told.json["holds"], true);
    }

    #[test]
    fn a_proof_that_was_changed_fails_by_name_and_ends_with_1() {
        let told = verified(&written().replace("\"total_minor\": 1000", "\"total_minor\": 1001"));
        assert_eq!(told.exit, EXIT_NO);
        assert!(
            told.words
                .starts_with("The proof does not hold, at step `amounts`: "),
            "{}",
            told.words
        );
        let told = verified("{}");
        assert_eq!(
            (told.exit, &told.json["step"]),
            (EXIT_NO, &Value::from("format"))
        );
    }

    #[test]
    fn a_file_that_is_missing_ends_with_66() {
        let args = Verify {
            file: "/nowhere/proof.json".into(),
            json: false,
        };
        assert_eq!(
            verify(&args, Style::default()).unwrap_err().exit,
            EXIT_NO_INPUT
        );
    }
}
