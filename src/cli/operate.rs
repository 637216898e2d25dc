//! `audit` and `info`: what operators ask.

use data_encoding::HEXLOWER;
use red_envelope_proto::v1;
use serde_json::{Value, json};

use super::args::{About, Audit};
use super::call::Client;
use super::words::{self, Style, Tone};
use super::{EXIT_NO, EXIT_OK, Failed, Told, shapes};
use crate::config::Environment;
use crate::domain::money::Currencies;
use crate::domain::money::print_amount;

/// Discrepancies that are printed for people; `--json` has all that the server named.
const SHOWN_DISCREPANCIES_MAX: usize = 20;

pub(super) async fn audit(
    args: Audit,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let client = Client::connect_admin(args.admin.as_deref(), args.timeout, environment).await?;
    let request = v1::AuditRequest {
        tenant: args.tenant.unwrap_or_default(),
        operator: args.operator,
        reason: args.reason,
        hot_only: args.hot_only,
    };
    let admin = client.admin();
    let report = client
        .ask(request, |request| {
            let mut admin = admin.clone();
            async move { admin.audit(request).await }
        })
        .await?;
    let exit = if report.clean { EXIT_OK } else { EXIT_NO };
    Ok(Told::ok(audit_words(&report, style), audit_json(&report)).ending(exit))
}

/// See `cli::reconciled`.
pub(super) fn reconciled(
    healed: &[(&str, usize)],
    report: &v1::AuditResponse,
    json: bool,
    style: Style,
) -> (String, u8) {
    let code = if report.clean { EXIT_OK } else { EXIT_NO };
    if json {
        let mut told = audit_json(report);
        for (what, count) in healed {
            told["healed"][*what] = json!(count);
        }
        return (format!("{told}\n"), code);
    }
    let mut text = String::from("Put right:\n");
    let counts: Vec<(String, String)> = healed
        .iter()
        .map(|(what, count)| (what.replace('_', " "), count.to_string()))
        .collect();
    let pairs: Vec<(&str, String)> = counts.iter().map(|(w, c)| (&**w, c.clone())).collect();
    text.push_str(&words::pairs(&pairs));
    text.push_str(&audit_words(report, style));
    (text, code)
}

/// Amounts of declared units have no decimals here: the operators' listener does not tell them.
fn audit_words(report: &v1::AuditResponse, style: Style) -> String {
    let of_what = if report.hot_only {
        "of what is hot "
    } else {
        ""
    };
    let verdict = if report.clean && report.hot_only && report.envelope_count == 0 {
        "Nothing is hot: the hot store holds no envelope.".to_owned()
    } else if report.clean {
        let moment = if report.quiet || report.hot_only {
            ""
        } else {
            " (while money moves)"
        };
        style.tone(
            Tone::Good,
            &format!("Clean: every unit {of_what}is accounted for{moment}."),
        )
    } else {
        let found = words::counted(report.discrepancy_count, "discrepancy", "discrepancies");
        style.tone(Tone::Bad, &format!("{found}."))
    };
    let mut text = format!("{verdict}\n");
    text.push_str(&words::pairs(&[
        ("envelopes", report.envelope_count.to_string()),
        ("claims", report.claim_count.to_string()),
        ("grants", report.grant_count.to_string()),
        ("in flight", report.in_flight_count.to_string()),
    ]));
    text.push_str(&totals_table(report));
    for found in report.discrepancies.iter().take(SHOWN_DISCREPANCIES_MAX) {
        let kind = shapes::name(found.kind().as_str_name(), "DISCREPANCY_KIND_");
        let envelope = words::clean(&found.envelope_id);
        text.push_str(&format!(
            "  {kind} {envelope} {}\n",
            words::clean(&found.detail)
        ));
    }
    if report.discrepancies.len() > SHOWN_DISCREPANCIES_MAX {
        text.push_str("  … and more: red-envelope audit --json\n");
    }
    text
}

/// Sums by currency; nothing where no envelope and no account was looked at.
fn totals_table(report: &v1::AuditResponse) -> String {
    let currencies = Currencies::default();
    // No account was looked at in an audit of what is hot.
    let columns = 6 - usize::from(report.hot_only);
    let rows: Vec<Vec<String>> = report
        .totals
        .iter()
        .map(|totals| {
            let code = totals.currency_code.as_str();
            let decimals = currencies.find(code).map_or(0, |c| currencies.decimals(c));
            let amounts = [
                totals.funded_minor,
                totals.remaining_minor,
                totals.unsettled_minor,
                totals.settled_minor,
                totals.refunded_minor,
                totals.available_minor,
            ];
            let printed = amounts.map(|minor| print_amount(minor, decimals));
            let printed = printed.into_iter().take(columns);
            std::iter::once(words::clean(code)).chain(printed).collect()
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let headings = [
        "",
        ">funded",
        ">remaining",
        ">unsettled",
        ">settled",
        ">refunded",
        ">on accounts",
    ];
    format!("\n{}", words::table(&headings[..=columns], &rows))
}

fn audit_json(report: &v1::AuditResponse) -> Value {
    let discrepancies = report.discrepancies.iter().map(|found| {
        json!({
            "kind": shapes::name(found.kind().as_str_name(), "DISCREPANCY_KIND_"),
            "tenant": found.tenant,
            "envelope_id": found.envelope_id,
            "detail": found.detail,
        })
    });
    let totals = report.totals.iter().map(|totals| {
        json!({
            "currency_code": totals.currency_code,
            "funded_minor": totals.funded_minor,
            "remaining_minor": totals.remaining_minor,
            "unsettled_minor": totals.unsettled_minor,
            "settled_minor": totals.settled_minor,
            "refunded_minor": totals.refunded_minor,
            "made_good_minor": totals.made_good_minor,
            "outside_minor": totals.outside_minor,
            "available_minor": totals.available_minor,
        })
    });
    json!({
        "clean": report.clean,
        "quiet": report.quiet,
        "hot_only": report.hot_only,
        "discrepancy_count": report.discrepancy_count,
        "discrepancies": discrepancies.collect::<Vec<_>>(),
        "totals": totals.collect::<Vec<_>>(),
        "envelope_count": report.envelope_count,
        "claim_count": report.claim_count,
        "grant_count": report.grant_count,
        "in_flight_count": report.in_flight_count,
        "start_time": shapes::instant(report.start_time.as_ref()),
        "end_time": shapes::instant(report.end_time.as_ref()),
    })
}

pub(super) async fn about(args: About, environment: &Environment) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let about = client.about().await?;
    let level = shapes::name(about.ack_level().as_str_name(), "ACK_LEVEL_");
    let newest = about.fairness_batches.first();
    let units: Vec<String> = about
        .declared_units
        .iter()
        .map(|unit| format!("{} ({} decimals)", words::clean(&unit.code), unit.decimals))
        .collect();
    let batch = newest.map_or_else(String::new, |batch| {
        format!(
            "{} root {}",
            batch.batch_number,
            HEXLOWER.encode(&batch.batch_root)
        )
    });
    let text = words::pairs(&[
        ("version", about.version.clone()),
        ("acknowledged means", level.clone()),
        (
            "hot store",
            format!("{}, {} partitions", about.hot_store, about.partition_count),
        ),
        ("ledger", about.ledger.clone()),
        ("declared units", units.join(", ")),
        (
            "senders may grab",
            if about.sender_may_grab { "yes" } else { "no" }.to_owned(),
        ),
        ("newest batch", batch),
    ]);
    let batches = about.fairness_batches.iter().map(|batch| {
        json!({
            "batch_number": batch.batch_number,
            "batch_root": HEXLOWER.encode(&batch.batch_root),
            "first_leaf_number": batch.first_leaf_number,
            "leaf_count": batch.leaf_count,
            "commit_time": shapes::instant(batch.commit_time.as_ref()),
        })
    });
    let declared = about.declared_units.iter();
    let json = json!({
        "version": about.version,
        "ack_level": level,
        "ack_level_declared": about.ack_level_declared,
        "hot_store": about.hot_store,
        "ledger": about.ledger,
        "partition_count": about.partition_count,
        "declared_units": declared.map(|u| json!({"code": u.code, "decimals": u.decimals})).collect::<Vec<_>>(),
        "sender_may_grab": about.sender_may_grab,
        "fairness_batches": batches.collect::<Vec<_>>(),
    });
    Ok(Told::ok(text, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> v1::AuditResponse {
        v1::AuditResponse {
            clean: true,
            quiet: true,
            totals: vec![v1::CurrencyTotals {
                currency_code: "CNY".to_owned(),
                funded_minor: 8_888,
                settled_minor: 8_888,
                available_minor: 10_000,
                ..v1::CurrencyTotals::default()
            }],
            envelope_count: 1,
            claim_count: 3,
            grant_count: 3,
            ..v1::AuditResponse::default()
        }
    }

    #[test]
    fn a_clean_audit_is_one_sentence_and_its_sums() {
        assert_eq!(
            audit_words(&report(), Style::default()),
            "Clean: every unit is accounted for.\n  \
             envelopes  1\n  claims     3\n  grants     3\n  in flight  0\n\n  \
             \u{20}    funded  remaining  unsettled  settled  refunded  on accounts\n  \
             CNY   88.88       0.00       0.00    88.88      0.00       100.00\n"
        );
    }

    #[test]
    fn discrepancies_are_listed_by_kind_and_envelope() {
        let report = v1::AuditResponse {
            clean: false,
            discrepancy_count: 1,
            discrepancies: vec![v1::Discrepancy {
                kind: v1::DiscrepancyKind::Stuck.into(),
                envelope_id: "abc".to_owned(),
                detail: "expired 90 s ago".to_owned(),
                ..v1::Discrepancy::default()
            }],
            ..report()
        };
        let text = audit_words(&report, Style::default());
        assert!(text.starts_with("1 discrepancy.\n"), "{text}");
        assert!(text.ends_with("  stuck abc expired 90 s ago\n"), "{text}");
        assert_eq!(audit_json(&report)["discrepancies"][0]["kind"], "stuck");
    }
}
