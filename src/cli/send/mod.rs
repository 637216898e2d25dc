//! `send` and `recall`: what senders do.

mod prompt;

use std::io::BufRead;
use std::path::Path;

use prost_types::{Duration, Timestamp};
use rand::RngExt;
use red_envelope_proto::v1;
use serde_json::json;
use v1::create_envelope_request::Amount;

use super::args::{Act, KindName, SendEnvelope, SplitName};
use super::call::Client;
use super::money::{minor_units, new_request_id, typed_amount};
use super::words::{self, Style, Tone};
use super::{Failed, Told, shapes};
use crate::clock::{Clock, SystemClock};
use crate::config::Environment;
use crate::domain::money::Currencies;

/// Bytes of the file that is read for its first line, a passphrase.
const PASSPHRASE_FILE_BYTES_MAX: u64 = 4_096;

pub(super) async fn send(
    args: SendEnvelope,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let kind = kind_of(&args)?;
    let code = currency_of(&args, kind)?;
    let passphrase = passphrase(args.passphrase_file.as_deref(), args.passphrase_prompt)?;
    let client = Client::connect(&args.at, environment).await?;
    let currencies = client.currencies([code.as_str()]).await?;
    let now_ms = SystemClock.now().0;
    let mut request = request(&args, kind, &code, &currencies, now_ms)?;
    request.tenant = client.tenant.clone();
    request.passphrase = passphrase;

    let envelopes = client.envelopes();
    let request_id = request.request_id.clone();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.create_envelope(request).await }
        })
        .await
        .map_err(|failed| failed.repeatable_by(&request_id))
        .map_err(|failed| failed.in_currency(&currencies, &code, &args.sender))?;
    let envelope = reply.envelope.unwrap_or_default();
    let json = json!({
        "request_id": request_id,
        "replayed": reply.replayed,
        "envelope": shapes::envelope(&currencies, &envelope),
    });
    let key = if reply.replayed {
        format!("{request_id} (sent before: this is the same envelope)")
    } else {
        request_id
    };
    let text = sent_words(&currencies, &envelope, key, now_ms, style);
    Ok(Told::ok(text, json))
}

fn kind_of(args: &SendEnvelope) -> Result<KindName, Failed> {
    let kind = args.kind.unwrap_or({
        if !args.to.is_empty() {
            KindName::Exclusive
        } else if !args.each.is_empty() {
            KindName::Equal
        } else {
            KindName::Lucky
        }
    });
    let wrong = |sentence: &str| Err(Failed::usage(sentence));
    let (total, each) = (!args.total.is_empty(), !args.each.is_empty());
    match kind {
        KindName::Exclusive if args.to.is_empty() => {
            wrong("an exclusive envelope names its grabbers: add --to bob=8.88 --currency CNY")
        }
        KindName::Exclusive if total || each || args.shares > 0 => wrong(
            "an exclusive envelope takes its amounts from --to: leave out --total, --each and --shares",
        ),
        KindName::Lucky | KindName::Equal if !args.to.is_empty() => {
            wrong("--to belongs to --kind exclusive")
        }
        KindName::Lucky if !total => wrong("how much? Add --total 88.88 CNY"),
        KindName::Equal if !total && !each => {
            wrong("how much? Add --each 5 CNY, or --total 15 CNY")
        }
        KindName::Lucky | KindName::Equal if args.shares == 0 => {
            wrong("into how many shares? Add --shares 10")
        }
        _ => Ok(kind),
    }
}

fn currency_of(args: &SendEnvelope, kind: KindName) -> Result<String, Failed> {
    match kind {
        KindName::Exclusive => args
            .currency
            .as_ref()
            .map(|code| code.to_uppercase())
            .ok_or_else(|| Failed::usage("in which currency? Add --currency CNY")),
        _ if args.each.is_empty() => typed_amount(&args.total, "--total").map(|(_, code)| code),
        _ => typed_amount(&args.each, "--each").map(|(_, code)| code),
    }
}

fn request(
    args: &SendEnvelope,
    kind: KindName,
    code: &str,
    currencies: &Currencies,
    now_ms: i64,
) -> Result<v1::CreateEnvelopeRequest, Failed> {
    let minor = |digits: &str, flag: &str| minor_units(currencies, digits, code, flag);
    let money = |words: &[String], flag: &str| {
        let (digits, code) = typed_amount(words, flag)?;
        let minor_units = minor(&digits, flag)?;
        Ok::<_, Failed>(v1::Money {
            currency_code: code,
            minor_units,
        })
    };
    let amount = match kind {
        KindName::Exclusive => None,
        _ if args.each.is_empty() => Some(Amount::Total(money(&args.total, "--total")?)),
        _ => Some(Amount::PerShare(money(&args.each, "--each")?)),
    };
    let limit =
        |text: &Option<String>, flag| text.as_deref().map_or(Ok(0), |digits| minor(digits, flag));
    let wire_kind = match kind {
        KindName::Lucky => v1::EnvelopeKind::Lucky,
        KindName::Equal => v1::EnvelopeKind::Equal,
        KindName::Exclusive => v1::EnvelopeKind::Exclusive,
    };
    let nonce: [u8; 16] = rand::rng().random();
    Ok(v1::CreateEnvelopeRequest {
        tenant: String::new(),
        sender: args.sender.clone(),
        request_id: args.request_id.clone().unwrap_or_else(new_request_id),
        kind: wire_kind.into(),
        amount,
        share_count: args.shares,
        min_share_minor: limit(&args.min, "--min")?,
        max_share_minor: limit(&args.max, "--max")?,
        split: split(args, minor)?,
        exclusive_shares: exclusive(&args.to, minor)?,
        exclusive_currency_code: match kind {
            KindName::Exclusive => code.to_owned(),
            _ => String::new(),
        },
        audience: audience(args),
        passphrase: String::new(),
        greeting: args.greeting.clone(),
        cover_id: args.cover.clone(),
        expires_in: args.expires.as_deref().map(expires_in).transpose()?,
        open_time: args
            .open
            .as_deref()
            .map(|when| open_time(when, now_ms))
            .transpose()?,
        // A request that is repeated by hand must be the same to the byte.
        client_nonce: match args.request_id {
            Some(_) => Vec::new(),
            None => nonce.to_vec(),
        },
        reveal: match args.reveal_at_end {
            true => v1::Reveal::AtEnd.into(),
            false => v1::Reveal::AfterGrab.into(),
        },
        labels: labels(&args.label)?,
    })
}

type Minor<'a> = &'a dyn Fn(&str, &str) -> Result<i64, Failed>;

fn split(
    args: &SendEnvelope,
    minor: impl Fn(&str, &str) -> Result<i64, Failed>,
) -> Result<Option<v1::Split>, Failed> {
    use v1::split::{BrokenStick, DoubleMean, Even, Rule, Tiers};
    let name = match (args.split, args.tier.is_empty()) {
        (Some(SplitName::Tiers), true) => {
            return Err(Failed::usage(
                "which tiers? Add --tier 8.88x3 for three shares of 8.88",
            ));
        }
        (Some(SplitName::Tiers) | None, false) => SplitName::Tiers,
        (Some(_), false) => return Err(Failed::usage("--tier belongs to --split tiers")),
        (Some(other), true) => other,
        (None, true) => return Ok(None),
    };
    let rule = match name {
        SplitName::DoubleMean => Rule::DoubleMean(DoubleMean {}),
        SplitName::BrokenStick => Rule::BrokenStick(BrokenStick {}),
        SplitName::Even => Rule::Even(Even {}),
        SplitName::Tiers => Rule::Tiers(Tiers {
            tiers: tiers(&args.tier, &minor)?,
        }),
    };
    Ok(Some(v1::Split { rule: Some(rule) }))
}

fn tiers(typed: &[String], minor: Minor<'_>) -> Result<Vec<v1::split::Tier>, Failed> {
    let tier = |text: &String| {
        let wrong = || {
            let sentence =
                format!("--tier must be an amount and a count such as 8.88x3, not {text:?}");
            Failed::usage(sentence)
        };
        let (amount, count) = text.split_once('x').ok_or_else(wrong)?;
        Ok(v1::split::Tier {
            amount_minor: minor(amount, "--tier")?,
            share_count: count.parse().map_err(|_| wrong())?,
        })
    };
    typed.iter().map(tier).collect()
}

fn exclusive(
    typed: &[String],
    minor: impl Fn(&str, &str) -> Result<i64, Failed>,
) -> Result<Vec<v1::ExclusiveShare>, Failed> {
    let share = |text: &String| {
        // The last =, since a name may hold one and an amount can't.
        let (grabber, amount) = text.rsplit_once('=').ok_or_else(|| {
            Failed::usage(format!(
                "--to must be a name and an amount such as bob=8.88, not {text:?}"
            ))
        })?;
        Ok(v1::ExclusiveShare {
            grabber: grabber.to_owned(),
            amount_minor: minor(amount, "--to")?,
        })
    };
    typed.iter().map(share).collect()
}

fn audience(args: &SendEnvelope) -> Option<v1::Audience> {
    use v1::audience::{Audience as Rule, Group, Named};
    let rule = match (&args.group, args.named.as_slice()) {
        (Some(group), _) => Rule::Group(Group {
            group_id: group.clone(),
        }),
        (None, []) => return None,
        (None, grabbers) => Rule::Named(Named {
            grabbers: grabbers.to_vec(),
        }),
    };
    Some(v1::Audience {
        audience: Some(rule),
    })
}

fn expires_in(text: &str) -> Result<Duration, Failed> {
    let ms = words::read_span(text).ok_or_else(|| {
        Failed::usage(format!(
            "--expires must be a time such as 24h, 30m or 7d, not {text:?}"
        ))
    })?;
    Ok(Duration {
        seconds: ms / 1_000,
        nanos: 0,
    })
}

/// `10m` from now, or an instant with its offset.
fn open_time(text: &str, now_ms: i64) -> Result<Timestamp, Failed> {
    let from_now = text.strip_prefix("in ").unwrap_or(text);
    let instant = match words::read_span(from_now) {
        Some(ms) => Some(now_ms.saturating_add(ms)),
        None => text
            .parse::<jiff::Timestamp>()
            .ok()
            .map(jiff::Timestamp::as_millisecond),
    };
    let ms = instant.ok_or_else(|| {
        Failed::usage(format!(
            "--open must be a time from now such as 10m, or an instant with its offset such as \
             2026-02-17T00:00:00+08:00, not {text:?}"
        ))
    })?;
    Ok(Timestamp {
        seconds: ms.div_euclid(1_000),
        nanos: i32::try_from(ms.rem_euclid(1_000)).unwrap_or(0) * 1_000_000,
    })
}

fn labels(typed: &[String]) -> Result<std::collections::BTreeMap<String, String>, Failed> {
    let label = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Failed::usage(format!(
                "--label must be a key and a value such as campaign=spring, not {text:?}"
            ))
        })?;
        Ok((key.to_owned(), value.to_owned()))
    };
    typed.iter().map(label).collect()
}

/// The first line of a file or of the terminal; empty without either. Never a flag's value, which
/// other users of the machine could read in the list of processes.
pub(super) fn passphrase(file: Option<&Path>, prompt: bool) -> Result<String, Failed> {
    let unreadable = |name: &str, why: std::io::Error| {
        Failed::no_input(format!("the passphrase can't be read from {name}: {why}"))
    };
    let text = match file {
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|e| unreadable(&name, e))?;
            first_line(file).map_err(|e| unreadable(&name, e))?
        }
        None if prompt => {
            prompt::unseen_line("Passphrase").map_err(|e| unreadable("the terminal", e))?
        }
        None => return Ok(String::new()),
    };
    if text.is_empty() {
        return Err(Failed::usage("the passphrase is empty"));
    }
    Ok(text)
}

fn first_line(from: impl std::io::Read) -> std::io::Result<String> {
    let mut line = String::new();
    let mut bounded = std::io::BufReader::new(std::io::Read::take(from, PASSPHRASE_FILE_BYTES_MAX));
    bounded.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn sent_words(
    currencies: &Currencies,
    envelope: &v1::Envelope,
    request_id: String,
    now_ms: i64,
    style: Style,
) -> String {
    let id = &envelope.envelope_id;
    let total = words::amount(currencies, envelope.total.as_ref());
    let shares = words::counted(envelope.share_count.into(), "share", "shares");
    let greeting = match words::clean(&envelope.greeting) {
        none if none.is_empty() => String::new(),
        said => format!(": {said}"),
    };
    let sender = words::clean(&envelope.sender);
    let mut text = format!("{sender} sent {total} in {shares}{greeting}\n");
    let relative = |at: &Option<Timestamp>| {
        at.as_ref()
            .map_or_else(String::new, |at| words::relative(at, now_ms))
    };
    let fairness = envelope.fairness.clone().unwrap_or_default();
    text.push_str(&words::pairs(&[
        ("envelope", style.tone(Tone::Strong, id)),
        ("state", shapes::state(envelope)),
        ("opens", relative(&envelope.open_time)),
        ("expires", relative(&envelope.expire_time)),
        (
            "seed",
            format!(
                "leaf {} of batch {}",
                fairness.leaf_number, fairness.batch_number
            ),
        ),
        ("request id", request_id),
        ("grab it", format!("red-envelope grab {id} --as NAME")),
    ]));
    text
}

pub(super) async fn recall(
    args: Act,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::RecallEnvelopeRequest {
        tenant: client.tenant.clone(),
        envelope_id: args.envelope,
        sender: args.person,
        request_id: new_request_id(),
    };
    let envelopes = client.envelopes();
    let reply = client
        .ask(request, |request| {
            let mut envelopes = envelopes.clone();
            async move { envelopes.recall_envelope(request).await }
        })
        .await?;
    let envelope = reply.envelope.unwrap_or_default();
    let codes = envelope.total.iter().map(|m| m.currency_code.as_str());
    let currencies = client.currencies(codes).await?;
    let progress = envelope.progress.clone().unwrap_or_default();
    let left = words::counted(progress.remaining_count.into(), "share", "shares");
    let verb = if reply.replayed {
        "Recalled before"
    } else {
        "Recalled"
    };
    let text = format!(
        "{}: nobody took {left}; what they are worth comes back within a minute.\n",
        style.tone(Tone::Strong, verb)
    );
    let json = json!({
        "replayed": reply.replayed,
        "envelope": shapes::envelope(&currencies, &envelope),
    });
    Ok(Told::ok(text, json))
}

#[cfg(test)]
mod tests;
