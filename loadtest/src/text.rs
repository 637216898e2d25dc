//! Words and numbers as reports write them: escaped for a page, grouped for people.

/// Text between tags, or in an attribute's double quotes. What XML has no character for becomes U+FFFD.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\t' | '\n' => safe.push(c),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A number with a comma between thousands, and so many decimals as its size is worth.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let decimals = match value.abs() {
        size if size == size.round() || size >= 1_000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 5,
    };
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, rest) = plain.split_once('.').unwrap_or((&plain, ""));
    let grouped = grouped(whole);
    let sign = if value < 0.0 { "−" } else { "" };
    let rest = rest.trim_end_matches('0');
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{rest}")
}

/// So many of a thing, whose plural has an `s`.
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", number(float(count)))
}

/// An amount, exactly.
pub fn whole(value: i64) -> String {
    let sign = if value < 0 { "−" } else { "" };
    format!("{sign}{}", grouped(&value.unsigned_abs().to_string()))
}

fn grouped(digits: &str) -> String {
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number for a narrow place: `12 k`, `3.4 M`.
pub fn short(value: f64) -> String {
    let units = [(1e9, " G"), (1e6, " M"), (1e4, " k")];
    let scaled = units.iter().find(|(from, _)| value.abs() >= *from);
    let (divisor, unit) = match scaled {
        Some((_, " k")) => (1e3, " k"),
        Some((from, unit)) => (*from, *unit),
        None => return number(value),
    };
    let tenths = (value / divisor * 10.0).round() / 10.0;
    format!("{}{unit}", number(tenths))
}

/// A count, which a float keeps exactly up to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "a count above 2^53 is told with 16 right digits"
)]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// Bytes as mebibytes.
pub fn mib(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_markup_is_no_markup() {
        let evil = "</td><script>alert(\"1\" & '2')</script>\u{0}\u{1b}[31m";
        assert_eq!(
            escape(evil),
            "&lt;/td&gt;&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;\u{fffd}\u{fffd}[31m"
        );
    }

    #[test]
    fn numbers_are_told_as_people_write_them() {
        let told = [
            0.0,
            12.0,
            1_234_567.0,
            999.94,
            1.5,
            0.25,
            -1_500.0,
            f64::NAN,
        ]
        .map(number);
        let wanted = [
            "0",
            "12",
            "1,234,567",
            "999.9",
            "1.5",
            "0.25",
            "−1,500",
            "–",
        ];
        assert_eq!(told, wanted);
        let told = [9_999.0, 12_345.0, 2e6, 0.02, 1.5e9, 0.001_5].map(short);
        assert_eq!(told, ["9,999", "12.3 k", "2 M", "0.02", "1.5 G", "0.0015"]);
        let told = [i64::MIN, -1_000, 0, 999, 1_000].map(whole);
        let wanted = ["−9,223,372,036,854,775,808", "−1,000", "0", "999", "1,000"];
        assert_eq!(told, wanted);
    }
}
