//! What a profile may say, and what is refused before a run begins.

use super::*;

#[test]
fn every_embedded_profile_is_valid_and_bears_its_name() {
    for (name, _) in EMBEDDED {
        assert_eq!(load(name).unwrap().name, name);
    }
}

#[test]
fn every_profile_beside_the_embedded_ones_is_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let mut others = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(load(path.to_str().unwrap()).unwrap().name, name);
        others += usize::from(EMBEDDED.iter().all(|(embedded, _)| *embedded != name));
    }
    assert_eq!(others, 1, "red-rain-million alone is not embedded");
}

#[test]
fn a_scaled_profile_has_more_envelopes_or_one_that_is_larger() {
    let twice = load("burst").unwrap().scaled(2.0).unwrap();
    let [everyone, chat] = &twice.crowds[..] else {
        panic!("burst has two crowds")
    };
    assert_eq!((everyone.envelopes, everyone.shares), (1, 100_000));
    assert_eq!(everyone.grabbers, 220_000);
    assert_eq!((chat.envelopes, chat.shares), (200, 20));
    let least = load("smoke").unwrap().scaled(0.001).unwrap();
    assert!(least.crowds.iter().all(|crowd| crowd.envelopes == 1));
    let error = format!("{:#}", load("burst").unwrap().scaled(900.0).unwrap_err());
    assert!(error.contains("--scale 900"), "{error}");
    for typed in ["0", "-1", "NaN", "1001", "many"] {
        assert!(times(typed).is_err(), "{typed}");
    }
}

#[test]
fn a_longer_profile_has_the_same_rate() {
    let soak = load("soak").unwrap();
    let (envelopes, spread_ms) = (soak.crowds[0].envelopes, soak.crowds[0].spread_ms);
    let minutes = u32::try_from(spread_ms / 60_000).unwrap();
    let longer = soak.clone().lasting(3 * minutes).unwrap();
    assert_eq!(longer.crowds[0].envelopes, 3 * envelopes);
    assert_eq!(longer.crowds[0].spread_ms, 3 * spread_ms);
    // What the command line takes, this profile does.
    soak.lasting(u32::try_from(MINUTES_MAX).unwrap()).unwrap();
    assert!(load("burst").unwrap().lasting(1).is_err());
}

#[test]
fn the_last_try_is_a_patient_one() {
    let text = include_str!("../../profiles/retry-storm.toml");
    let text = text.replacen("tries_max = 20", "tries_max = 12", 1);
    let error = format!("{:#}", parse(&text).unwrap_err());
    assert!(error.contains("impatient_tries is 12"), "{error}");
}

#[test]
fn a_mistyped_key_is_named() {
    let text = EMBEDDED[0].1.replace("late_ms", "late_msec");
    let error = format!("{:#}", parse(&text).unwrap_err());
    assert!(error.contains("late_msec"), "{error}");
}

#[test]
fn outsiders_of_an_open_envelope_are_a_contradiction() {
    let text = EMBEDDED[0].1.replacen("outsiders = 0", "outsiders = 1", 1);
    let error = format!("{:#}", parse(&text).unwrap_err());
    assert!(error.contains("outsiders"), "{error}");
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = load("smok").unwrap_err().to_string();
    assert!(error.contains("smoke"), "{error}");
}

#[test]
fn what_every_run_would_meet_is_judged_by_no_gate() {
    let smoke = EMBEDDED[0].1;
    let with = |line: &str| {
        let text = smoke.replacen("[gates]\n", &format!("[gates]\n{line}\n"), 1);
        parse(&text).unwrap().gates.late_permille_max
    };
    assert_eq!(with(""), None);
    assert_eq!(with("late_permille_max = 1_000"), None);
    assert_eq!(with("late_permille_max = 999"), Some(999));
}

#[test]
fn profiles_that_judge_speed_judge_lateness_and_the_storm_must_blow() {
    for name in ["new-year-eve", "soak"] {
        let gates = load(name).unwrap().gates;
        assert!(gates.late_permille_max.is_some_and(|max| max <= 100));
        assert!(gates.unary_p99_ms_max <= 2_000 && gates.stream_p99_ms_max <= 2_000);
    }
    let storm = load("retry-storm").unwrap().gates;
    assert!(storm.retried_permille_min.is_some_and(|min| min > 0));
}
