//! GetYearTotals: what somebody gave and got in a year.
//!
//! # Bounds
//! `ledger::TOTALS_ROWS_MAX` shares and envelopes are read; who has more is told how to add them up.
//!
//! # Not here
//! Grabs that are not settled: they are in the balance as `pending`.

use jiff::civil::date;
use jiff::tz::Offset;
use red_envelope_proto::v1;

use super::Api;
use super::admission::Admission;
use super::status::ApiError;
use super::wire;
use crate::domain::id::UnixMs;
use crate::ledger::{Period, PeriodTotals};

/// The years of which an envelope's id can be.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=2149;
/// How far a clock is ahead of UTC or behind it, at most: RFC 9557 has no more.
const UTC_OFFSET_MINUTES_MAX: i32 = 18 * 60;

/// The year by a clock that is ahead of UTC by an offset.
fn year_of(a: &mut Admission, request: &v1::GetYearTotalsRequest) -> Option<Period> {
    let (year, minutes) = (request.year, request.utc_offset_minutes);
    if !YEARS.contains(&year) {
        let (first, last) = (YEARS.start(), YEARS.end());
        a.offend(
            "year",
            format!("must be from {first} to {last}, not {year}"),
        );
        return None;
    }
    if minutes.unsigned_abs() > UTC_OFFSET_MINUTES_MAX.unsigned_abs() {
        let most = UTC_OFFSET_MINUTES_MAX;
        let says = format!("must be from -{most} to {most}, not {minutes}");
        a.offend("utc_offset_minutes", says);
        return None;
    }
    let clock = Offset::from_seconds(minutes * 60).ok()?;
    let begins = |year: i32| {
        let first = date(i16::try_from(year).ok()?, 1, 1);
        let begins = clock.to_timestamp(first.at(0, 0, 0, 0)).ok()?;
        Some(UnixMs(begins.as_millisecond()))
    };
    Some(Period {
        from: begins(year)?,
        to: begins(year + 1)?,
    })
}

/// GetYearTotals.
pub(super) async fn get_year_totals(
    api: &Api,
    request: v1::GetYearTotalsRequest,
) -> Result<v1::GetYearTotalsResponse, ApiError> {
    let mut a = Admission::default();
    let tenant = a.tenant(&request.tenant);
    let person = a.name("person", &request.person);
    let year = year_of(&mut a, &request);
    let ((tenant, person), year) = a.admit(tenant.zip(person).zip(year))?;
    let totals = api.ledger.totals(tenant, person, year).await?;
    let totals = totals.ok_or(ApiError::TooMany)?;
    Ok(v1::GetYearTotalsResponse {
        totals: totals.iter().map(told).collect(),
    })
}

fn told(totals: &PeriodTotals) -> v1::YearTotals {
    let currency = totals.currency;
    let money = |minor| Some(wire::money(currency, minor));
    v1::YearTotals {
        received_count: totals.received_count.into(),
        received: money(totals.received_minor),
        best_luck_count: totals.best_count.into(),
        sent_count: totals.sent_count.into(),
        sent: money(totals.sent_minor),
        refunded: money(totals.refunded_minor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn year(year: i32, utc_offset_minutes: i32) -> Result<Period, ApiError> {
        let request = v1::GetYearTotalsRequest {
            year,
            utc_offset_minutes,
            ..Default::default()
        };
        let mut a = Admission::default();
        let period = year_of(&mut a, &request);
        a.admit(period)
    }

    #[test]
    fn a_year_begins_by_the_clock_of_the_caller() {
        const HOUR_MS: i64 = 3_600_000;
        // date -u -d 2027-01-01 +%s, and of 2028.
        let (from, to) = (1_798_761_600_000, 1_830_297_600_000);
        for (minutes, ahead_ms) in [(0, 0), (480, 8 * HOUR_MS), (-210, -7 * HOUR_MS / 2)] {
            let period = year(2027, minutes).unwrap();
            assert_eq!(period.from, UnixMs(from - ahead_ms));
            assert_eq!(period.to, UnixMs(to - ahead_ms));
        }
    }

    #[test]
    fn a_year_without_envelopes_and_a_clock_that_nobody_has_are_refused() {
        for (of, minutes) in [
            (1969, 0),
            (2150, 0),
            (i32::MIN, 0),
            (2027, 1_081),
            (2027, i32::MIN),
        ] {
            assert!(year(of, minutes).is_err(), "{of} {minutes}");
        }
        assert!(year(1970, 1_080).is_ok() && year(2149, -1_080).is_ok());
    }
}
