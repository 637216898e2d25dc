//! Answers for people: amounts with their decimals, times from now, aligned columns, colours where
//! they are seen.

use prost_types::Timestamp;
use red_envelope_proto::v1;

use crate::domain::money::{Currencies, print_amount};

/// How output looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    pub colours: bool,
}

/// Colours by what they mean, as SGR codes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tone {
    Good,
    Bad,
    Quiet,
    Strong,
}

impl Style {
    /// The text in its colour, if colours are seen.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Text of others without control and bidirectional formatting characters: it can't move the
/// cursor, and it reads as it is stored.
pub(super) fn clean(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{061c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if harmful(c) { '\u{fffd}' } else { c })
        .collect()
}

/// `8.88 CNY`.
pub(super) fn money(currencies: &Currencies, money: &v1::Money) -> String {
    let decimals = currencies
        .find(&money.currency_code)
        .map_or(0, |currency| currencies.decimals(currency));
    let code = clean(&money.currency_code);
    format!("{} {code}", print_amount(money.minor_units, decimals))
}

/// As [`money`], and a dash for an amount that this viewer may not see.
pub(super) fn amount(currencies: &Currencies, amount: Option<&v1::Money>) -> String {
    amount.map_or_else(|| "-".to_owned(), |m| money(currencies, m))
}

/// Milliseconds since 1970.
pub(super) fn ms_of(at: &Timestamp) -> i64 {
    let whole = at.seconds.saturating_mul(1_000);
    whole.saturating_add(i64::from(at.nanos / 1_000_000))
}

/// `2 min ago`, `in 23 h`, `now`.
pub(super) fn relative(at: &Timestamp, now_ms: i64) -> String {
    let ms = ms_of(at).saturating_sub(now_ms);
    match ms {
        -999..=999 => "now".to_owned(),
        ..=-1_000 => format!("{} ago", span(ms.saturating_neg())),
        _ => format!("in {}", span(ms)),
    }
}

/// A length of time in its two largest units: `1 d 2 h`, `23 h 59 min`, `5 s`.
pub(super) fn span(ms: i64) -> String {
    let seconds = ms / 1_000;
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut parts = Vec::new();
    let mut rest = seconds;
    for (length, name) in units {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            parts.push(format!("{count} {name}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        return "0 s".to_owned();
    }
    parts.join(" ")
}

/// Reads `90s`, `30m`, `24h`, `7d`.
pub(super) fn read_span(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let count: i64 = digits.trim_end().parse().ok().filter(|n| *n > 0)?;
    count.checked_mul(unit_ms)
}

/// `1 share`, `3 shares`.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Names and values, the values aligned; empty values are left out.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let widest = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let gap = " ".repeat(widest - width(name) + 2);
        text.push_str(&format!("  {name}{gap}{value}\n"));
    }
    text
}

/// Columns under their headings; those whose heading begins with `>` are aligned to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = headings.iter().map(|h| h.trim_start_matches('>')).collect();
    let mut widths: Vec<usize> = names.iter().map(|name| width(name)).collect();
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let line = |cells: &[&str]| {
        let mut text = String::new();
        for ((cell, heading), widest) in cells.iter().zip(headings).zip(&widths) {
            let gap = " ".repeat(widest - width(cell));
            let (before, after) = if heading.starts_with('>') {
                (gap.as_str(), "")
            } else {
                ("", gap.as_str())
            };
            text.push_str(&format!("  {before}{cell}{after}"));
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&names);
    for row in rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        text.push_str(&line(&cells));
    }
    text
}

/// Columns of a terminal: East Asian wide characters and emoji take two, marks none. An estimate
/// by ranges; what it misses shifts a column and nothing else.
fn width(text: &str) -> usize {
    text.chars()
        .map(|c| match c {
            '\u{0300}'..='\u{036f}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' => 0,
            '\u{1100}'..='\u{115f}'
            | '\u{2e80}'..='\u{a4cf}'
            | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}'
            | '\u{fe30}'..='\u{fe6f}'
            | '\u{ff00}'..='\u{ff60}'
            | '\u{ffe0}'..='\u{ffe6}'
            | '\u{1f300}'..='\u{1faff}'
            | '\u{20000}'..='\u{3fffd}' => 2,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_decimals_of_their_currency_and_hidden_ones_are_a_dash() {
        let currencies = Currencies::with_declared([("STARS", 1)]).unwrap();
        let of = |code: &str, minor_units| v1::Money {
            currency_code: code.to_owned(),
            minor_units,
        };
        assert_eq!(money(&currencies, &of("CNY", 888)), "8.88 CNY");
        assert_eq!(money(&currencies, &of("JPY", 500)), "500 JPY");
        assert_eq!(money(&currencies, &of("STARS", 15)), "1.5 STARS");
        assert_eq!(amount(&currencies, None), "-");
    }

    #[test]
    fn instants_are_told_from_now() {
        let at = |seconds| Timestamp { seconds, nanos: 0 };
        let now_ms = 1_000_000_000;
        assert_eq!(relative(&at(1_000_000), now_ms), "now");
        assert_eq!(relative(&at(999_995), now_ms), "5 s ago");
        assert_eq!(relative(&at(1_086_399), now_ms), "in 23 h 59 min");
        assert_eq!(relative(&at(1_000_000 + 90_000), now_ms), "in 1 d 1 h");
        assert_eq!(relative(&at(1_000_000 + 86_405), now_ms), "in 1 d");
    }

    #[test]
    fn lengths_of_time_are_read_with_their_unit() {
        assert_eq!(read_span("90s"), Some(90_000));
        assert_eq!(read_span("30m"), Some(1_800_000));
        assert_eq!(read_span("24h"), Some(86_400_000));
        assert_eq!(read_span("7d"), Some(604_800_000));
        for bad in [
            "",
            "h",
            "24",
            "-1h",
            "1.5h",
            "0s",
            "99999999999999999d",
            "1 fortnight",
        ] {
            assert_eq!(read_span(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn columns_stay_aligned_also_with_wide_names() {
        let rows = [
            vec!["#1".to_owned(), "bob".to_owned(), "12.34 CNY".to_owned()],
            vec!["#2".to_owned(), "小明".to_owned(), "8.00 CNY".to_owned()],
        ];
        assert_eq!(
            table(&["share", "who", ">amount"], &rows),
            "  share  who      amount\n  #1     bob   12.34 CNY\n  #2     小明   8.00 CNY\n"
        );
        assert_eq!(
            pairs(&[
                ("a", "1".into()),
                ("none", String::new()),
                ("long", "2".into())
            ]),
            "  a     1\n  long  2\n"
        );
    }

    #[test]
    fn colours_are_used_only_where_they_are_seen() {
        assert_eq!(Style { colours: false }.tone(Tone::Good, "won"), "won");
        let colourful = Style { colours: true };
        assert_eq!(colourful.tone(Tone::Good, "won"), "\u{1b}[32mwon\u{1b}[0m");
    }
}
