//! Reads a server's `/metrics`: what it tells of its queues, its batches and its books' delay.
//!
//! The names are those of docs/RUNBOOK.md, which are part of what an operator may rely on.
//!
//! **Bounds**: the caller's patience for each step of an answer, [`PAGE_BYTES_MAX`] of it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// A page has some 40 KiB; beyond this it is none.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Where a server tells its metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrape {
    /// Host and port.
    at: String,
}

impl Scrape {
    /// On a port of this machine.
    pub fn on_loopback(port: u16) -> Self {
        Self {
            at: format!("127.0.0.1:{port}"),
        }
    }

    /// From what a person typed: `127.0.0.1:8080` and `http://127.0.0.1:8080/metrics` are the same.
    pub fn parse(typed: &str) -> anyhow::Result<Self> {
        ensure!(
            !typed.starts_with("https://"),
            "{typed:?}: metrics are read without TLS, from the machine itself or a tunnel"
        );
        let at = typed.strip_prefix("http://").unwrap_or(typed);
        let at = at.strip_suffix("/metrics").unwrap_or(at);
        let at = at.trim_end_matches('/');
        let port = at.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        ensure!(
            matches!(port, Some(Ok(_))) && !at.contains('/'),
            "{typed:?} is no address such as http://127.0.0.1:8080"
        );
        Ok(Self { at: at.to_owned() })
    }

    /// One look; the connection, a write and a read may take so long each.
    pub fn look(&self, patience: Duration) -> anyhow::Result<Page> {
        let mut places = self.at.to_socket_addrs().context("no such host")?;
        let place: SocketAddr = places.next().context("the host has no address")?;
        let mut stream = TcpStream::connect_timeout(&place, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        // HTTP/1.0: one answer, not in chunks, and the end of the connection is its end.
        let ask = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.at);
        stream.write_all(ask.as_bytes())?;
        let mut told = String::new();
        stream.take(PAGE_BYTES_MAX).read_to_string(&mut told)?;
        let (head, body) = told.split_once("\r\n\r\n").context("no HTTP answer")?;
        let first = head.lines().next().unwrap_or_default();
        ensure!(first.contains(" 200 "), "{} answered {first:?}", self.at);
        Ok(Page::parse(body))
    }
}

/// One look at everything that a server counts, in Prometheus' text format.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Name, labels and value of each line.
    lines: Vec<(String, String, f64)>,
}

impl Page {
    /// Of an answer's body.
    pub fn parse(text: &str) -> Self {
        let told = text.lines().filter(|line| !line.starts_with('#'));
        let lines = told.filter_map(|line| {
            let (series, value) = line.trim().rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let value = value.parse().ok()?;
            Some((name.to_owned(), labels.to_owned(), value))
        });
        Self {
            lines: lines.collect(),
        }
    }

    /// The sum over all labels. None: the server does not tell it.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.value_where(name, |_| true)
    }

    /// The sum over those labels. None: the server tells of none of them.
    pub fn value_where(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Option<f64> {
        let of_name = self.lines.iter().filter(|(other, ..)| other == name);
        let of_name = of_name.filter(|(_, labels, _)| wanted(labels));
        let mut values = of_name.map(|(.., value)| *value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// A histogram: how many were at most so large, in the order of the sizes; the last is without end.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let of_name = self.lines.iter().filter(|(other, ..)| *other == name);
        let buckets = of_name.filter_map(|(_, labels, count)| {
            let (_, behind) = labels.split_once("le=\"")?;
            let (up_to, _) = behind.split_once('"')?;
            // "+Inf" parses too.
            Some((up_to.parse::<f64>().ok()?, *count))
        });
        let mut buckets: Vec<(f64, f64)> = buckets.collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP shed Calls\n# TYPE shed counter\nshed{what=\"grabs\"} 3\n\
        shed{what=\"creates\"} 4\nsize_bucket{le=\"16\"} 5\nsize_bucket{le=\"+Inf\"} 9\n\
        size_bucket{le=\"4\"} 2\nsize_sum 90\nsize_count 9\nwaits 1.5\n";

    #[test]
    fn values_are_summed_over_labels_and_missing_ones_are_none() {
        let page = Page::parse(TEXT);
        assert_eq!(page.value("shed"), Some(7.0));
        assert_eq!(page.value("waits"), Some(1.5));
        assert_eq!(page.value("size"), None);
        let creates = |labels: &str| labels.contains("what=\"creates\"");
        assert_eq!(page.value_where("shed", creates), Some(4.0));
        assert_eq!(page.value_where("shed", |_| false), None);
    }

    #[test]
    fn buckets_come_in_the_order_of_their_sizes() {
        let buckets = Page::parse(TEXT).buckets("size");
        assert_eq!(buckets, [(4.0, 2.0), (16.0, 5.0), (f64::INFINITY, 9.0)]);
    }

    #[test]
    fn an_address_is_read_as_people_type_it() {
        let same = [
            "127.0.0.1:8080",
            "http://127.0.0.1:8080",
            "http://127.0.0.1:8080/",
            "http://127.0.0.1:8080/metrics",
        ];
        for typed in same {
            let parsed = Scrape::parse(typed).unwrap();
            assert_eq!(parsed, Scrape::on_loopback(8080));
        }
        for typed in ["https://x:1", "x", "x:y", "http://x:1/other"] {
            assert!(Scrape::parse(typed).is_err(), "{typed}");
        }
    }
}
