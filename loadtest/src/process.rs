//! What a process costs: its CPU time and its memory, as the kernel counts them.

use std::time::Duration;

/// Linux tells CPU time in hundredths of a second (USER_HZ, see proc(5)).
const TICKS_PER_SECOND: u64 = 100;

/// One that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// How reports call it.
    pub name: &'static str,
    /// The kernel's number of it.
    pub pid: u32,
    /// Whether its children are counted with it, also those that ended.
    pub with_children: bool,
}

impl Process {
    /// This one.
    pub fn own() -> Self {
        Self {
            name: "loadtest",
            pid: std::process::id(),
            with_children: false,
        }
    }

    /// CPU time since it started. None: it has gone.
    pub fn cpu(&self) -> Option<Duration> {
        let own = Times::read(self.pid)?;
        let mut ticks = own.ticks;
        if self.with_children {
            ticks += own.ticks_of_ended;
            let children = children_of(self.pid);
            ticks += children.map(|(_, times)| times.ticks).sum::<u64>();
        }
        Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    /// Resident memory, in bytes. What processes of one family share counts once: of files and of
    /// shared memory, what the one with most of it has. None: it has gone.
    pub fn memory_bytes(&self) -> Option<u64> {
        let mut sum = Resident::read(self.pid)?;
        if self.with_children {
            for (pid, _) in children_of(self.pid) {
                // It may have ended since.
                if let Some(child) = Resident::read(pid) {
                    sum.anonymous += child.anonymous;
                    sum.file = sum.file.max(child.file);
                    sum.shared = sum.shared.max(child.shared);
                }
            }
        }
        Some(sum.anonymous + sum.file + sum.shared)
    }
}

fn children_of(parent: u32) -> impl Iterator<Item = (u32, Times)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter_map(|pid| Some((pid, Times::read(pid)?)));
    others.filter(move |(_, times)| times.parent == parent)
}

/// What the kernel says of a process's time.
struct Times {
    parent: u32,
    ticks: u64,
    ticks_of_ended: u64,
}

impl Times {
    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&stat)
    }

    /// Fields as proc(5) numbers them, behind the name in brackets, which is the second.
    fn parse(stat: &str) -> Option<Self> {
        let (_, behind) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = behind.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            ticks: field(14)? + field(15)?,
            ticks_of_ended: field(16)? + field(17)?,
        })
    }
}

/// What the kernel says of a process's memory, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Resident {
    anonymous: u64,
    file: u64,
    shared: u64,
}

impl Resident {
    fn read(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::parse(&status)
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib = line.trim().strip_suffix("kB")?;
            Some(1_024 * kib.trim().parse::<u64>().ok()?)
        };
        Some(Self {
            anonymous: bytes("RssAnon:")?,
            file: bytes("RssFile:")?,
            shared: bytes("RssShmem:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks_and_brackets() {
        let stat = "7 (a b) c) S 3 7 7 0 -1 4194304 1 2 3 4 11 12 13 14 20 0 1 0 5 6 7";
        let times = Times::parse(stat).unwrap();
        assert_eq!(
            (times.parent, times.ticks, times.ticks_of_ended),
            (3, 23, 27)
        );
        assert!(Times::parse("7 (a) S 3").is_none());
    }

    #[test]
    fn memory_is_read_by_its_kinds_and_not_guessed() {
        let status = "VmRSS:\t 99 kB\nRssAnon:\t 4 kB\nRssFile:\t  2 kB\nRssShmem:\t 1 kB\n";
        let kinds = Resident {
            anonymous: 4_096,
            file: 2_048,
            shared: 1_024,
        };
        assert_eq!(Resident::parse(status), Some(kinds));
        assert_eq!(Resident::parse("VmRSS:\t 99 kB\n"), None);
    }

    #[test]
    fn this_process_uses_cpu_time_and_memory() {
        let own = Process::own();
        let before = own.cpu().unwrap();
        let mut spun = 0_u64;
        while own.cpu().unwrap() == before {
            spun += 1;
        }
        assert!(spun > 0);
        let with_children = Process {
            with_children: true,
            ..own
        };
        assert!(with_children.cpu().unwrap() > before);
        assert!(own.memory_bytes().unwrap() > 1_000_000);
    }

    #[test]
    fn a_process_that_has_gone_has_no_figures() {
        let gone = Process {
            pid: u32::MAX,
            ..Process::own()
        };
        assert_eq!((gone.cpu(), gone.memory_bytes()), (None, None));
    }
}
