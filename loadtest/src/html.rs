//! One report as one page: the verdict, the gates, then plots. It needs no other file and no script.
//!
//! Whatever comes from a name, a file or a server is escaped (`text::escape`). The page is well-formed as
//! XML, which a test holds.

mod plots;
mod scale;
mod svg;
#[cfg(test)]
mod tests;

use crate::report::{Gate, Report};
use crate::text::{counted, escape, float, mib, number, short, whole};

const STYLE: &str = include_str!("html/style.css");

/// The page.
pub fn page(report: &Report) -> String {
    let outcome = if report.passed { "passed" } else { "failed" };
    let title = escape(&format!("Rehearsal {} {outcome}", report.profile));
    let body = [
        format!("<header><h1>{title}</h1>{}</header>", about(report)),
        void(report),
        verdict(report),
        tiles(report),
        gates(&report.gates),
        wrong(report),
        format!(
            "<h2>What happened</h2>\n<div class=\"plots\">{}</div>",
            plots::all(report)
        ),
        percentiles(report),
        money(report),
        processes(report),
        footer(report),
    ];
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><title>{title}</title><style>{STYLE}</style></head>\n\
         <body>{}</body></html>\n",
        body.join("\n")
    )
}

fn about(report: &Report) -> String {
    let setup = &report.setup;
    let servers = match setup.processes {
        Some(servers @ 2..) => format!("{servers} servers on "),
        _ => String::new(),
    };
    let stores = match (&setup.stack, &setup.ack) {
        (Some(stack), Some(ack)) => {
            format!("{servers}stores {stack}, acknowledged at level {ack}")
        }
        _ => "on a server that ran already".to_owned(),
    };
    let built = match setup.optimised {
        true => "",
        false => " · built without optimisation: times and costs tell nothing",
    };
    let words = format!(
        "{} · seed {} · {} on {} · {stores} · {}{built}",
        report.began_at,
        report.seed,
        counted(report.planned_grabs, "grab"),
        counted(report.envelopes, "envelope"),
        counted(setup.cores, "core"),
    );
    format!("<p class=\"soft\">{}</p>", escape(&words))
}

/// Above everything else: figures of a void run are the generator's.
fn void(report: &Report) -> String {
    let Some(why) = &report.generator.void else {
        return String::new();
    };
    format!(
        "<div class=\"verdict bad\"><strong>✗ VOID: the load test measured itself.</strong><p>{}.</p></div>",
        escape(why)
    )
}

fn verdict(report: &Report) -> String {
    let audit = &report.audit;
    let whole = report.not_compared.is_none() && report.violation_count == 0;
    let good = audit.clean && audit.quiet && whole;
    let (class, sign, words) = match (good, audit.clean) {
        _ if audit.failed.is_some() => ("bad", "✗", "Money audit: there was none."),
        (true, _) => (
            "good",
            "✓",
            "Money audit: clean. Every minor unit is where it belongs.",
        ),
        (false, true) if !audit.quiet => ("bad", "✗", "Money audit: clean so far, but not quiet."),
        (false, true) if report.not_compared.is_some() => (
            "bad",
            "✗",
            "Money audit: clean, but not compared with what people were told.",
        ),
        (false, true) => (
            "bad",
            "✗",
            "Money audit: clean, but people were told otherwise.",
        ),
        (false, false) => ("bad", "✗", "Money audit: NOT CLEAN."),
    };
    let found = format!(
        "{} discrepancies over {}, {} and {}; {} wrong answers or balances over {}.",
        audit.discrepancy_count,
        counted(audit.envelopes, "envelope"),
        counted(audit.grants, "grant"),
        counted(audit.claims, "claim"),
        report.violation_count,
        counted(report.accounts_compared, "account"),
    );
    let missed: Vec<&str> = report
        .gates
        .iter()
        .filter(|gate| !gate.met)
        .map(|gate| gate.name.as_str())
        .collect();
    let gates = match missed.len() {
        0 => (
            "good",
            format!("✓ All {} gates are met.", report.gates.len()),
        ),
        count => {
            let of = report.gates.len();
            (
                "bad",
                format!("✗ {count} of {of} gates are missed: {}.", missed.join(", ")),
            )
        }
    };
    format!(
        "<div class=\"verdict {class}\"><strong>{sign} {words}</strong><p>{}</p></div>\n\
         <div class=\"verdict {}\"><strong>{}</strong></div>",
        escape(&found),
        gates.0,
        escape(&gates.1)
    )
}

fn tiles(report: &Report) -> String {
    let mut tiles = vec![
        (number(report.grabs_per_s.round()), "grabs a second served"),
        (
            format!("{:.1} s", report.fire_s),
            "from the first instant to the last answer",
        ),
    ];
    for (name, lines) in report.transports() {
        let p99 = lines.latency_ms.get("p99").copied().unwrap_or(0.0);
        let words = match name {
            "unary" => "p99 of single calls",
            _ => "p99 on streams",
        };
        tiles.push((format!("{} ms", number(p99)), words));
    }
    tiles.push((short(float(report.sum(|it| it.late))), "grabs left late"));
    tiles.push((short(float(report.sum(|it| it.not_sent))), "grabs not sent"));
    if let Some(drained_s) = report.drained_s {
        let words = "after the last answer nothing waited for the books";
        tiles.push((format!("{drained_s:.1} s"), words));
    }
    let closed = "after the last answer every envelope was closed";
    tiles.push((format!("{:.1} s", report.close_s), closed));
    let tile = |(value, words): &(String, &str)| {
        format!(
            "<li><b>{}</b><span>{}</span></li>",
            escape(value),
            escape(words)
        )
    };
    let tiles: String = tiles.iter().map(tile).collect();
    format!("<ul class=\"tiles\">{tiles}</ul>")
}

fn gates(gates: &[Gate]) -> String {
    let row = |gate: &Gate| {
        let (class, words) = match gate.met {
            true => ("good", "✓ met"),
            false => ("bad", "✗ missed"),
        };
        format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td class=\"{class}\">{words}</td></tr>",
            escape(&gate.name),
            escape(&gate.wanted),
            escape(&gate.found)
        )
    };
    let rows: String = gates.iter().map(row).collect();
    format!(
        "<h2 id=\"gates\">Gates</h2><div class=\"scroll\"><table class=\"words\"><thead><tr><th \
         scope=\"col\">what</th><th scope=\"col\">wanted</th><th scope=\"col\">found</th><th \
         scope=\"col\">verdict</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn wrong(report: &Report) -> String {
    let all = report.violations.iter().chain(&report.audit.discrepancies);
    let items: String = all.map(|it| format!("<li>{}</li>", escape(it))).collect();
    if items.is_empty() {
        return String::new();
    }
    let told = report.violations.len() + report.audit.discrepancies.len();
    let of = report.violation_count + report.audit.discrepancy_count;
    format!("<h2 id=\"wrong\">What is wrong</h2><p>The first {told} of {of}:</p><ol>{items}</ol>")
}

fn percentiles(report: &Report) -> String {
    let heads: Vec<&str> = std::iter::once("sent")
        .chain(["late", "not sent", "retried"])
        .chain(crate::report::QUANTILES.iter().map(|(name, _)| *name))
        .collect();
    let rows = report.transports().map(|(name, lines)| {
        let counts = [lines.sent, lines.late, lines.not_sent, lines.retried];
        let times = crate::report::QUANTILES.iter();
        let times = times.map(|(name, _)| lines.latency_ms.get(*name).copied());
        let times = times.map(|ms| number(ms.unwrap_or(f64::NAN)));
        let counts = counts.into_iter().map(|count| number(float(count)));
        (name.to_owned(), counts.chain(times).collect())
    });
    let caption = "milliseconds from the instant at which a grab was due";
    let table = svg::table(caption, "transport", &heads, rows);
    format!("<h2 id=\"transports\">Transports</h2><div class=\"scroll\">{table}</div>")
}

fn money(report: &Report) -> String {
    let rows = report.money.iter().map(|(currency, sums)| {
        let minor = [sums.funded_minor, sums.won_minor, sums.refunded_minor];
        (currency.clone(), minor.map(whole).into())
    });
    let heads = ["funded", "won", "refunded"];
    let table = svg::table("minor units", "currency", &heads, rows);
    format!("<h2 id=\"money\">Money</h2><div class=\"scroll\">{table}</div>")
}

fn processes(report: &Report) -> String {
    let heads = [
        "µs a grab",
        "µs a grab until closed",
        "MiB before",
        "MiB prepared",
        "MiB at most",
    ];
    let rows = report.cpu_us_per_grab.iter().map(|(process, us)| {
        let later = report.cpu_us_per_grab_until_closed.get(process);
        let memory = report.memory.get(process);
        let memory = memory.map(|it| [it.before_bytes, it.prepared_bytes, it.peak_bytes]);
        let memory = memory.map_or([f64::NAN; 3], |bytes| bytes.map(|it| mib(it).round()));
        let times = [*us, later.copied().unwrap_or(f64::NAN)];
        let cells = times.into_iter().chain(memory).map(number).collect();
        (process.clone(), cells)
    });
    let table = svg::table("CPU time and resident memory", "process", &heads, rows);
    format!("<h2 id=\"processes\">Processes</h2><div class=\"scroll\">{table}</div>")
}

fn footer(report: &Report) -> String {
    let words = format!(
        "Written by loadtest {} after run {}. Latency counts from the instant at which a grab was due, \
         whenever it left. Times between plots agree to about half a second.",
        report.version, report.run
    );
    format!("<footer><p>{}</p></footer>", escape(&words))
}
