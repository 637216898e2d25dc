//! Every row of the table is looked at.

use super::*;

/// One of each: the match makes the compiler ask for a new one.
fn one_of_each() -> Vec<ApiError> {
    let all = vec![
        ApiError::invalid("total.minor_units", "must be at least 1 minor unit, not 0"),
        ApiError::NotFound,
        ApiError::DeadLetterNotFound,
        ApiError::DeadLetterStands,
        ApiError::DeadLetterSettled,
        ApiError::DeadLetterNotGranted,
        ApiError::RequestIdReused,
        ApiError::InsufficientFunds {
            available_minor: 1,
            needed_minor: 2,
        },
        ApiError::BalanceTooLarge,
        ApiError::MakeGoodCapped,
        ApiError::AlreadyOver(CloseReason::Expired),
        ApiError::AlreadyGrabbed,
        ApiError::NotExclusive,
        ApiError::NotClosed,
        ApiError::TooMuch,
        ApiError::TooMany,
        ApiError::Funding,
        ApiError::Frozen,
        ApiError::Shed(Full::HotStore),
        ApiError::Behind(Behind::Creates),
        ApiError::Unavailable("10.0.0.7 refused".into()),
        ApiError::Stopped("fsync".into()),
        ApiError::Deadline,
        ApiError::Internal("row 7 of table claim".into()),
    ];
    for error in &all {
        match error {
            ApiError::Invalid(_)
            | ApiError::NotFound
            | ApiError::DeadLetterNotFound
            | ApiError::DeadLetterStands
            | ApiError::DeadLetterSettled
            | ApiError::DeadLetterNotGranted
            | ApiError::RequestIdReused
            | ApiError::InsufficientFunds { .. }
            | ApiError::BalanceTooLarge
            | ApiError::MakeGoodCapped
            | ApiError::AlreadyOver(_)
            | ApiError::AlreadyGrabbed
            | ApiError::NotExclusive
            | ApiError::NotClosed
            | ApiError::TooMuch
            | ApiError::TooMany
            | ApiError::Funding
            | ApiError::Frozen
            | ApiError::Shed(_)
            | ApiError::Behind(_)
            | ApiError::Unavailable(_)
            | ApiError::Stopped(_)
            | ApiError::Deadline
            | ApiError::Internal(_) => {}
        }
    }
    all
}

#[test]
fn every_error_carries_its_domain_and_a_reason_of_its_own() {
    let mut reasons = Vec::new();
    for error in one_of_each() {
        let status = error.to_status();
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.domain, ERROR_DOMAIN);
        assert!(
            info.reason
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b == b'_'),
            "{}",
            info.reason
        );
        reasons.push(info.reason);
    }
    let all = reasons.len();
    reasons.sort();
    reasons.dedup();
    assert_eq!(reasons.len(), all);
}

#[test]
fn what_may_be_retried_says_when_and_nothing_else_does() {
    for error in one_of_each() {
        let status = error.to_status();
        let told = status.get_details_retry_info().and_then(|r| r.retry_delay);
        let retryable = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
            || matches!(error, ApiError::Shed(_));
        assert_eq!(told.is_some(), retryable, "{error:?}");
    }
}

#[test]
fn words_for_the_log_never_reach_the_caller() {
    for error in one_of_each() {
        let (ApiError::Internal(words) | ApiError::Unavailable(words) | ApiError::Stopped(words)) =
            &error
        else {
            continue;
        };
        let status = error.to_status();
        assert!(!status.message().contains(words.as_str()), "{status:?}");
        let details = String::from_utf8_lossy(status.details()).into_owned();
        assert!(!details.contains(words.as_str()), "{details}");
    }
}

#[test]
fn every_offending_field_is_named() {
    let error = ApiError::Invalid(vec![
        Offence {
            field: "sender".into(),
            says: "must not be empty".into(),
        },
        Offence {
            field: "total.minor_units".into(),
            says: "must be at least 1 minor unit, not 0".into(),
        },
    ]);
    let status = error.to_status();
    assert_eq!(status.code(), Code::InvalidArgument);
    let named = status.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = named.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["sender", "total.minor_units"]);
}

#[test]
fn a_stream_carries_the_same_code_and_details() {
    for error in one_of_each() {
        let message = error.to_message();
        assert_eq!(message.code, error.row().code as i32);
        assert!(!message.details.is_empty());
    }
}
