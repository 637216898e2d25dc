//! What must happen, held against what is answered.
//!
//! The generator sends the money and plans every grab, so it knows more than the server tells it:
//! an envelope of N shares makes exactly N people win, with exactly its money; a second grab gets
//! the first answer; nobody finds it empty before N others have asked, and nobody wins after
//! somebody was told that it is empty. A page of the book is one envelope; each answer is checked
//! as it comes, the sums when all have come.
//!
//! Grabs overlap, so only orders that the generator has seen count: *asked* is when a grab
//! left, *answered* when its answer was here. Whether there is an order of all of them in which an
//! envelope answers so is judged at the end, by the law that the server's own tests are held to.
//!
//! **Bounds**: the first `DETAILS_MAX` violations of a kind are kept in words, all are counted.
//!
//! **Not here**: connections, clocks and what the ledger says.

use std::collections::HashMap;

use red_envelope_history::{self as law, Attempt, Handing, History};

use crate::schedule::Person;

/// Violations of one kind that are told in words: enough to see a pattern, few enough to read.
pub const DETAILS_MAX: usize = 20;

/// What an envelope has to pay.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How the report calls it.
    pub name: String,
    /// All shares together.
    pub total_minor: i64,
    /// How many.
    pub share_count: u32,
    /// The smallest.
    pub min_minor: i64,
    /// The largest.
    pub max_minor: i64,
    /// For exclusive envelopes: the amount of each guest, who holds the share of the own number.
    pub named_minor: Option<Vec<i64>>,
    /// How many may grab.
    pub guests: u32,
}

/// A share as an answer shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub number: u32,
    /// What it is worth.
    pub amount_minor: i64,
}

impl Held {
    fn share(self) -> law::Share {
        law::Share {
            number: self.number,
            amount_minor: self.amount_minor,
        }
    }
}

/// How a grab was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The share is new.
    Won(Held),
    /// The share is of before.
    Already(Held),
    /// Nothing is left.
    Empty,
    /// Unknown, or not for this person.
    NotFound,
    /// Anything that this book never expects, in words.
    Odd(String),
    /// Not known after all tries.
    Unknown(String),
}

impl Answer {
    /// Its column in reports.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Won(_) => "won",
            Self::Already(_) => "already_grabbed",
            Self::Empty => "empty",
            Self::NotFound => "not_found",
            Self::Odd(_) => "odd",
            Self::Unknown(_) => "unresolved",
        }
    }
}

/// What went wrong, and how often.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    /// All of them.
    pub count: u64,
    /// The first `DETAILS_MAX`.
    pub details: Vec<String>,
}

impl Violations {
    /// Notes one.
    pub fn note(&mut self, detail: String) {
        self.count += 1;
        if self.details.len() < DETAILS_MAX {
            self.details.push(detail);
        }
    }

    /// Adds those of the same kind.
    pub fn absorb(&mut self, other: Self) {
        let room = DETAILS_MAX - self.details.len();
        self.count += other.count;
        self.details.extend(other.details.into_iter().take(room));
    }

    /// Adds those of another kind: consequences don't crowd out their cause.
    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        self.details.extend(other.details);
    }
}

/// One guest's side of an envelope.
#[derive(Clone, Copy, Default)]
struct Guest {
    asked: bool,
    /// Somebody had been told that it is empty when this guest asked for the first time.
    too_late: bool,
    held: Option<Held>,
    wins: u32,
    /// A try of this guest ended without an answer, so the win may have been told to nobody.
    doubtful: bool,
}

/// One envelope's page.
pub struct Page {
    terms: Terms,
    guests: Vec<Guest>,
    asked_count: u32,
    taken: HashMap<u32, u32>,
    empty_seen: bool,
    violations: Violations,
    /// Of the guests.
    history: History<u32>,
    /// Grows with every question and answer.
    stamp: u64,
}

impl Page {
    /// An envelope that nobody has asked for.
    pub fn new(terms: Terms) -> Self {
        Self {
            guests: vec![Guest::default(); terms.guests as usize],
            asked_count: 0,
            taken: HashMap::new(),
            empty_seen: false,
            violations: Violations::default(),
            history: History {
                share_count: terms.share_count,
                handing: match terms.named_minor {
                    Some(_) => Handing::Unordered,
                    None => Handing::ByNumber,
                },
                ..History::default()
            },
            stamp: 0,
            terms,
        }
    }

    /// The server deals envelopes of more shares than this, and says that their numbers tell no order. 0: it deals
    /// none.
    pub fn deals_above(&mut self, shares: u32) {
        if shares > 0 && self.terms.share_count > shares {
            self.history.handing = Handing::Unordered;
        }
    }

    /// A grab leaves. Answers its stamp.
    pub fn ask(&mut self, person: Person) -> u64 {
        self.stamp += 1;
        let Person::Guest(number) = person else {
            return self.stamp;
        };
        let guest = &mut self.guests[number as usize];
        if !guest.asked {
            guest.asked = true;
            guest.too_late = self.empty_seen;
            self.asked_count += 1;
        }
        self.stamp
    }

    /// A grab that left at this stamp is answered; `doubtful` if an earlier try of it was not.
    pub fn answer(&mut self, person: Person, asked_at: u64, doubtful: bool, answer: &Answer) {
        self.stamp += 1;
        let before = self.violations.count;
        match person {
            Person::Guest(number) => {
                self.record(number, asked_at, doubtful, answer);
                let unknown = matches!(answer, Answer::Unknown(_));
                self.guests[number as usize].doubtful |= doubtful || unknown;
                self.guest_answer(number, answer);
            }
            Person::Outsider(_) => match answer {
                Answer::NotFound | Answer::Unknown(_) => {}
                _ => self.violate(format!("an outsider got {answer:?}")),
            },
        }
        if self.violations.count == before
            && let Answer::Odd(words) = answer
        {
            self.violate(format!("{person:?} got {words}"));
        }
    }

    /// For the judge, who knows nothing of tries: one that was not answered is a grab by itself.
    fn record(&mut self, grabber: u32, asked_at: u64, doubtful: bool, answer: &Answer) {
        let told = match answer {
            Answer::Won(held) => Some(law::Answer::Won(held.share())),
            Answer::Already(held) => Some(law::Answer::Already(held.share())),
            Answer::Empty => Some(law::Answer::Empty),
            Answer::NotFound | Answer::Odd(_) | Answer::Unknown(_) => None,
        };
        let answers = [told.map(|told| (self.stamp, told)), None];
        let tries = 1 + usize::from(doubtful && told.is_some());
        for answered in answers.into_iter().take(tries) {
            self.history.attempts.push(Attempt {
                grabber,
                asked_at,
                answered,
            });
        }
    }

    fn violate(&mut self, what: String) {
        let name = &self.terms.name;
        self.violations.note(format!("{name}: {what}"));
    }

    fn guest_answer(&mut self, number: u32, answer: &Answer) {
        match answer {
            Answer::Won(held) => {
                let guest = &mut self.guests[number as usize];
                guest.wins += 1;
                if guest.wins > 1 {
                    self.violate(format!("guest {number} was told WON twice"));
                }
                self.hold(number, *held);
            }
            Answer::Already(held) => self.hold(number, *held),
            Answer::Empty => self.empty(number),
            Answer::NotFound => self.violate(format!("guest {number} got NOT_FOUND")),
            Answer::Odd(_) | Answer::Unknown(_) => {}
        }
    }

    fn hold(&mut self, number: u32, held: Held) {
        let guest = &mut self.guests[number as usize];
        match guest.held {
            Some(first) if first == held => return,
            Some(first) => {
                return self.violate(format!("guest {number} was shown {held:?} after {first:?}"));
            }
            None => guest.held = Some(held),
        }
        if guest.too_late {
            self.violate(format!("guest {number} got {held:?} although it was empty"));
        }
        let Terms {
            share_count,
            min_minor,
            max_minor,
            ..
        } = self.terms;
        if held.number >= share_count
            || held.amount_minor < min_minor
            || held.amount_minor > max_minor
        {
            self.violate(format!(
                "{held:?} is outside {share_count} shares of {min_minor} to {max_minor}"
            ));
        }
        if let Some(named) = &self.terms.named_minor
            && (held.number != number || named.get(number as usize) != Some(&held.amount_minor))
        {
            self.violate(format!("guest {number} got {held:?}, not the own share"));
        }
        if let Some(other) = self.taken.insert(held.number, number) {
            self.violate(format!(
                "share {} went to guest {other} and to guest {number}",
                held.number
            ));
        }
    }

    fn empty(&mut self, number: u32) {
        self.empty_seen = true;
        let others = self.asked_count - 1;
        if self.terms.named_minor.is_some() {
            self.violate(format!(
                "guest {number} got EMPTY where a share has the name"
            ));
        } else if let Some(held) = self.guests[number as usize].held {
            self.violate(format!("guest {number} got EMPTY and holds {held:?}"));
        } else if others < self.terms.share_count {
            self.violate(format!(
                "EMPTY when {others} others had asked for {} shares",
                self.terms.share_count
            ));
        }
    }

    /// Everybody has been answered: what the sums say.
    pub fn sum_up(&mut self) {
        let mut doubtful = 0_u32;
        for number in 0..self.terms.guests {
            let guest = self.guests[number as usize];
            doubtful += u32::from(guest.doubtful);
            if guest.held.is_some() && guest.wins == 0 && !guest.doubtful {
                self.violate(format!(
                    "guest {number} holds a share and was never told WON"
                ));
            }
        }
        let holders = self.holders();
        let most = self.terms.share_count.min(self.asked_count);
        // An unanswered grab may hold a share that nobody was shown.
        if holders > most || holders + doubtful < most {
            self.violate(format!(
                "{holders} hold a share of {} with {} asking ({doubtful} doubtful)",
                self.terms.share_count, self.asked_count
            ));
        }
        let (paid, total) = (self.paid_minor(), self.terms.total_minor);
        if (holders == self.terms.share_count && paid != total) || paid > total {
            self.violate(format!("{holders} shares pay {paid} of {total}"));
        }
        for violation in self.history.violations() {
            self.violate(format!("no order of the grabs explains it: {violation}"));
        }
    }

    /// How many guests hold a share.
    pub fn holders(&self) -> u32 {
        u32::try_from(self.taken.len()).expect("no more shares than u32 counts")
    }

    /// Whether every share is held by somebody.
    pub fn is_all_taken(&self) -> bool {
        self.holders() == self.terms.share_count
    }

    /// What the holders were told together.
    pub fn paid_minor(&self) -> i64 {
        self.held().map(|(_, held)| held.amount_minor).sum()
    }

    /// Who holds what.
    pub fn held(&self) -> impl Iterator<Item = (u32, Held)> + '_ {
        (0_u32..)
            .zip(&self.guests)
            .filter_map(|(number, guest)| Some((number, guest.held?)))
    }

    /// What the envelope has to pay.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What went wrong, taken out.
    pub fn take_violations(&mut self) -> Violations {
        std::mem::take(&mut self.violations)
    }
}

#[cfg(test)]
mod tests;
