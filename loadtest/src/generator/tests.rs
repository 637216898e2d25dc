//! Which delays are the generator's own, and which void a run.

use super::*;

fn why(cpu_permille: f64, delay_p99_ms: f64, latency_p99_ms: f64) -> Option<String> {
    let gates = Gates {
        generator_cpu_permille_max: 800,
        generator_late_ms_max: 20,
        ..crate::profile::load("smoke").unwrap().gates
    };
    let pace = Pace {
        cpu_permille: Some(cpu_permille),
        delay_p99_ms,
        latency_p99_ms,
        ..Pace::default()
    };
    pace.why_void(&gates)
}

#[test]
fn a_generator_that_keeps_up_voids_nothing() {
    assert_eq!(why(800.0, 20.0, 21.0), None);
    // Late, but the latency is the server's.
    assert_eq!(why(100.0, 30.0, 1_000.0), None);
}

#[test]
fn a_busy_generator_voids_a_run() {
    let why = why(801.0, 0.0, 1.0).unwrap();
    assert!(why.contains("used 801 thousandths"), "{why}");
}

#[test]
fn a_late_generator_voids_a_run_whose_latency_it_made() {
    assert_eq!(why(100.0, 33.0, 100.0), None);
    let why = why(100.0, 34.0, 100.0).unwrap();
    assert!(why.contains("34.0 ms late"), "{why}");
}

#[test]
fn a_lane_that_fell_behind_by_itself_is_behind_until_it_has_caught_up() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let ms = Duration::from_millis;
    let mut turn = Turn::new(start);
    // Nobody let it run before 2,000, although places were free: everybody of that time is its fault.
    assert_eq!(turn.own_delay(at(10), at(2_000)), ms(1_990));
    assert_eq!(turn.own_delay(at(1_900), at(2_001)), ms(101));
    // It waits for a place: nobody who was due before that came is.
    turn.waited_until(at(3_000));
    assert_eq!(turn.own_delay(at(2_500), at(3_001)), ms(1));
    assert_eq!(turn.own_delay(at(2_600), at(3_002)), ms(2));
    assert_eq!(turn.own_delay(at(3_010), at(3_009)), Duration::ZERO);
}

/// So many grabs, each late by the generator's fault for so long and answered after so long.
fn record(grabs: u64, delay_ms: u64, latency_ms: u64) -> Record {
    let mut record = Record::new(Duration::from_millis(20));
    for _ in 0..grabs {
        record.left(Duration::ZERO, Duration::ZERO);
        record.own.delayed(Duration::from_millis(delay_ms));
        let answered = Duration::from_millis(latency_ms);
        record.answered(Duration::ZERO, answered, 1, "won");
    }
    record
}

fn paced(unary: Record, stream: Record, still: Still) -> Pace {
    let records = BTreeMap::from([(Transport::Unary, unary), (Transport::Stream, stream)]);
    let gates = Gates {
        generator_late_ms_max: 20,
        ..crate::profile::load("smoke").unwrap().gates
    };
    let cpu = Cpu(vec![
        ("server", Duration::MAX),
        ("loadtest", Duration::from_secs(1)),
    ]);
    Pace::new(&gates, &cpu, 2.0, still, &records)
}

fn pace(unary: Record, stream: Record) -> Pace {
    paced(unary, stream, Still::default())
}

#[test]
fn the_transport_that_voids_a_run_is_told_also_where_the_other_was_later() {
    let pace = pace(record(500, 30, 40), record(9_500, 50, 9_000));
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert_eq!(pace.cpu_permille, Some(500.0 / cores));
    assert_eq!(pace.transport.as_deref(), Some("unary"));
    assert!((pace.delay_p99_ms - 30.0).abs() < 0.1, "{pace:?}");
    assert!((pace.latency_p99_ms - 40.0).abs() < 0.1, "{pace:?}");
    assert!(pace.void.unwrap().contains("one single call in a hundred"));
}

#[test]
fn a_transport_with_few_of_the_grabs_voids_no_run_and_hides_no_other() {
    let few = pace(record(499, 30, 40), record(9_501, 1, 9_000));
    assert_eq!(few.void, None);
    assert_eq!(few.transport.as_deref(), Some("stream"));
    let other = pace(record(499, 90, 9_000), record(9_501, 30, 40));
    assert!(other.void.unwrap().contains("one grab on streams"));
    let nobody = pace(record(0, 0, 0), record(99, 30, 40));
    assert_eq!((nobody.void, nobody.transport), (None, None));
}

#[test]
fn a_generator_that_stood_still_voids_a_run_although_every_lane_waited_for_a_place() {
    let still = |longest, sum| {
        let [longest, sum] = [longest, sum].map(Duration::from_millis);
        let still = Still { longest, sum };
        paced(record(0, 0, 0), record(1_000, 1, 2_800), still).void
    };
    // Of two seconds.
    let why = still(1_900, 1_900).unwrap();
    assert!(why.contains("stood still for 1900 ms"), "{why}");
    assert_eq!(still(900, 1_900), None, "a third of 2,800 ms is more");
    assert_eq!(
        still(1_900, 19),
        None,
        "one in a hundred did not wait for it"
    );
}
