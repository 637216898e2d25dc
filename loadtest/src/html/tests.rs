//! The page as a structure: complete, well-formed, self-contained, and safe with any name.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::report::{Memory, tests::seconds};
use crate::sample::{Bucket, Samples};

const EVIL: &str = "<script src=\"https://x\">&'\u{1}</script>";

/// Twenty seconds on both transports, with everything that a report can tell.
fn full() -> Report {
    let mut report = seconds(&[300; 20], 5);
    report.stream.clone_from(&report.unary);
    report.profile = EVIL.into();
    report.run = EVIL.into();
    report.violations = vec![EVIL.into()];
    report.audit.discrepancies = vec![EVIL.into()];
    report.gates[0].name = EVIL.into();
    report
        .money
        .insert(EVIL.into(), crate::finish::Sums::default());
    let unary = report.unary.as_mut().unwrap();
    unary.outcomes.insert(EVIL.into(), 3);
    let at_s: Vec<f64> = (-2..30_i32).map(f64::from).collect();
    let column = |scale: f64| at_s.iter().map(|at| Some(at.max(0.0) * scale)).collect();
    let bytes = vec![Some(50 << 20); at_s.len()];
    report.samples = Samples {
        cpu_s: BTreeMap::from([("server".into(), column(0.7)), (EVIL.into(), column(0.1))]),
        memory_bytes: BTreeMap::from([("server".into(), bytes)]),
        server: [
            "backlog",
            "settlement_lag_s",
            "shed",
            "failed_grabs",
            "refused_grabs",
        ]
        .map(|name| (name.to_owned(), column(10.0)))
        .into(),
        at_s,
    };
    report.memory = BTreeMap::from([(EVIL.into(), Memory::default())]);
    let bucket = |up_to, count| Bucket { up_to, count };
    let buckets = vec![bucket(Some(1.0), 3), bucket(Some(4.0), 9), bucket(None, 1)];
    report.batches = ["hot_commit_grabs", "settle_batch_records"]
        .map(|name| (name.to_owned(), buckets.clone()))
        .into();
    report
}

/// One tag of a page with its attributes.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
}

/// Reads a page as an XML reader would, and fails where that one would stop.
fn tags(page: &str) -> Vec<Tag> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    let (mut tags, mut open) = (Vec::new(), Vec::new());
    while let Some(at) = rest.find('<') {
        check_text(&rest[..at]);
        let end = at + rest[at..].find('>').expect("a tag that ends");
        let inside = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "near {rest:.80}");
            continue;
        }
        let (inside, is_empty) = match inside.strip_suffix('/') {
            Some(inside) => (inside, true),
            None => (inside, false),
        };
        let (name, attributes) = inside.split_once(' ').unwrap_or((inside, ""));
        assert!(
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()),
            "{name}"
        );
        if !is_empty {
            open.push(name.to_owned());
        }
        tags.push(Tag {
            name: name.to_owned(),
            attributes: read_attributes(attributes),
        });
    }
    check_text(rest);
    assert!(open.is_empty(), "never closed: {open:?}");
    tags
}

fn read_attributes(mut rest: &str) -> Vec<(String, String)> {
    let mut attributes = Vec::new();
    while !rest.trim().is_empty() {
        let (name, behind) = rest.split_once("=\"").expect("a value in quotes");
        let (value, behind) = behind.split_once('"').expect("a value that ends");
        check_text(value);
        attributes.push((name.trim().to_owned(), value.to_owned()));
        rest = behind;
    }
    let names: BTreeSet<&String> = attributes.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), attributes.len(), "an attribute twice");
    attributes
}

fn check_text(text: &str) {
    for (at, _) in text.match_indices('&') {
        let (entity, _) = text[at + 1..].split_once(';').expect("an entity that ends");
        assert!(
            ["amp", "lt", "gt", "quot", "#39"].contains(&entity),
            "&{entity};"
        );
    }
    assert!(
        text.chars().all(|c| !c.is_control() || c == '\n'),
        "a control character"
    );
}

fn values<'a>(tags: &'a [Tag], name: &str) -> Vec<&'a str> {
    let all = tags.iter().flat_map(|tag| &tag.attributes);
    let named = all.filter(|(other, _)| other == name);
    named.map(|(_, value)| value.as_str()).collect()
}

/// Numbers of a path, a list of coordinates or a single value.
fn numbers(value: &str) -> Vec<f64> {
    let separators = |c: char| c.is_ascii_alphabetic() || matches!(c, ',' | ' ');
    let parts = value.split(separators).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap()).collect()
}

#[test]
fn the_page_is_well_formed_whatever_names_and_texts_say() {
    let page = page(&full());
    let tags = tags(&page);
    assert!(page.contains("&lt;script src=&quot;https://x&quot;&gt;&amp;&#39;\u{fffd}"));
    assert!(tags.iter().all(|tag| tag.name != "script"));
    let ids = values(&tags, "id");
    let different: BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(ids.len(), different.len(), "an id twice: {ids:?}");
    for named in values(&tags, "aria-labelledby")
        .iter()
        .flat_map(|it| it.split(' '))
    {
        assert!(ids.contains(&named), "{named}");
    }
}

#[test]
fn the_page_needs_no_other_file_and_runs_nothing() {
    let mut report = full();
    // A name may contain it; the page itself may not.
    report.profile = "smoke".into();
    for text in ["http", "@import", "url(", "javascript"] {
        let page = page(&report).replace(&escape(EVIL), "");
        assert!(!page.contains(text), "{text}");
    }
    for tag in tags(&page(&report)) {
        for (name, value) in tag.attributes {
            let loads = [
                "src",
                "href",
                "xlink:href",
                "action",
                "data",
                "srcset",
                "style",
            ];
            assert!(!loads.contains(&name.as_str()), "{name}={value}");
            assert!(!name.starts_with("on"), "{name}={value}");
        }
    }
}

#[test]
fn each_plot_is_there_with_words_a_table_and_coordinates_inside_its_frame() {
    let page = page(&full());
    for id in [
        "served",
        "curve",
        "latency-unary",
        "latency-stream",
        "outcomes",
        "trouble",
        "backlog",
        "lag",
        "cpu-per-grab",
        "cores",
        "memory",
        "batches-hot",
        "batches-settle",
    ] {
        let from = page
            .find(&format!("<figure class=\"plot\" id=\"{id}\">"))
            .expect(id);
        let figure = &page[from..];
        let figure = &figure[..figure.find("</figure>").unwrap()];
        for part in [
            "<title",
            "<desc",
            "role=\"img\"",
            "<table>",
            "<th scope=\"row\">",
        ] {
            assert!(figure.contains(part), "{id} has no {part}");
        }
        let drawn = figure.contains("class=\"line s0\"") || figure.contains("class=\"bar s0\"");
        assert!(drawn, "{id} is empty");
    }
    let tags = tags(&page);
    for name in ["d", "x", "y", "width", "height", "viewBox"] {
        for value in values(&tags, name) {
            for coordinate in numbers(value) {
                assert!((0.0..=1_000.0).contains(&coordinate), "{name}: {value}");
            }
        }
    }
}

#[test]
fn what_was_not_told_is_said_instead_of_drawn() {
    let mut bare = seconds(&[], 5);
    bare.unary = None;
    let page = page(&bare);
    tags(&page);
    assert!(page.contains("Not told: the server&#39;s metrics were not read"));
    assert!(page.contains("Nobody was answered."));
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn the_verdict_tells_a_clean_audit_from_money_that_is_missing() {
    let good = seconds(&[300; 3], 5);
    assert!(page(&good).contains("✓ Money audit: clean."));
    let mut lied = good.clone();
    lied.violation_count = 1;
    assert!(page(&lied).contains("✗ Money audit: clean, but people were told otherwise."));
    let mut loud = good.clone();
    loud.audit.quiet = false;
    assert!(page(&loud).contains("✗ Money audit: clean so far, but not quiet."));
    let mut alone = good.clone();
    alone.not_compared = Some("nobody is there".into());
    assert!(page(&alone).contains("✗ Money audit: clean, but not compared with what people"));
    let mut none = good.clone();
    none.audit.failed = Some("nobody answers".into());
    none.audit.clean = false;
    assert!(page(&none).contains("✗ Money audit: there was none."));
    let mut unclean = good;
    unclean.audit.clean = false;
    assert!(page(&unclean).contains("✗ Money audit: NOT CLEAN."));
}

#[test]
fn what_was_shed_is_drawn_also_where_it_was_nothing() {
    let mut report = full();
    let looks = report.samples.at_s.len();
    let nought = vec![Some(0.0); looks];
    report.samples.server.insert("shed".into(), nought);
    let page = page(&report);
    let trouble = page.find("id=\"trouble\"").unwrap();
    for name in [
        "shed by the server",
        "failed at the server",
        "outsiders refused by the server",
    ] {
        assert!(page[trouble..].contains(name), "{name}");
    }
}

#[test]
fn no_plot_goes_on_while_accounts_are_compared() {
    let mut report = full();
    // As after two million of them.
    report.samples.at_s.push(1_000.0);
    for column in report.samples.server.values_mut() {
        let last = column.last().copied().flatten();
        column.push(last);
    }
    for column in report.samples.cpu_s.values_mut() {
        let last = column.last().copied().flatten();
        column.push(last);
    }
    for column in report.samples.memory_bytes.values_mut() {
        column.push(Some(50 << 20));
    }
    let page = page(&report);
    tags(&page);
    for id in ["trouble", "backlog", "lag", "cores", "memory"] {
        let from = page.find(&format!("id=\"{id}\"")).unwrap();
        let plot = &page[from..from + page[from..].find("</figure>").unwrap()];
        assert!(!plot.contains("1,000"), "{id}: {plot}");
    }
}

#[test]
fn a_void_run_is_said_to_be_void_above_the_audit() {
    let mut report = full();
    assert!(!page(&report).contains("VOID"));
    report.generator.void = Some(EVIL.into());
    let page = page(&report);
    tags(&page);
    let void = page.find("VOID: the load test measured itself.").unwrap();
    assert!(void < page.find("Money audit").unwrap());
}
