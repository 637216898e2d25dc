//! What one run is about: its people, its envelopes and the book that is kept of them.
//!
//! Every run has a name of its own, which begins the name of everybody in it, so that runs against
//! the same server never meet.

use std::sync::{Mutex, MutexGuard, OnceLock};

use red_envelope_proto::v1;
use tokio::time::Instant;

use crate::book::{Page, Terms};
use crate::profile::{Audience, Crowd, Kind, Profile, Split};
use crate::schedule::{Person, Schedule};

/// One run.
pub struct World {
    /// Begins everybody's name.
    pub run: String,
    /// What to do.
    pub profile: Profile,
    /// When.
    pub schedule: Schedule,
    /// The ids of the schedule's envelopes, once they exist.
    pub ids: Vec<String>,
    /// The instant from which arrivals count, once the firing has begun.
    pub fire_start: OnceLock<Instant>,
    pages: Vec<Mutex<Page>>,
}

impl World {
    /// Before anything has happened.
    pub fn new(run: String, profile: Profile, schedule: Schedule) -> Self {
        let pages = (schedule.envelopes.iter().enumerate())
            .map(|(number, crowd)| Mutex::new(Page::new(terms(&profile.crowds[*crowd], number))))
            .collect();
        Self {
            run,
            profile,
            schedule,
            ids: Vec::new(),
            fire_start: OnceLock::new(),
            pages,
        }
    }

    /// The crowd that meets an envelope.
    pub fn crowd(&self, envelope: usize) -> &Crowd {
        &self.profile.crowds[self.schedule.envelopes[envelope]]
    }

    /// The envelope's page in the book.
    pub fn page(&self, envelope: usize) -> MutexGuard<'_, Page> {
        // A poisoned page means that a check panicked: the run is void, and says so by panicking.
        self.pages[envelope].lock().expect("no check has panicked")
    }

    /// What the server says of the envelopes that it deals; those with a passphrase are none of them.
    pub fn deals_above(&self, shares: u32) {
        for envelope in 0..self.pages.len() {
            if self.crowd(envelope).passphrase.is_empty() {
                self.page(envelope).deals_above(shares);
            }
        }
    }

    /// Who pays for a crowd's envelopes.
    pub fn sender(&self, crowd: &Crowd) -> String {
        format!("{}-{}-sender", self.run, crowd.name)
    }

    /// The circle that an envelope goes to: a group, or whom a sender names.
    pub fn circle(&self, envelope: usize) -> String {
        let crowd = self.crowd(envelope);
        match envelope.checked_rem(crowd.circles as usize) {
            None => format!("{}-{}", self.run, crowd.name),
            // A crowd has no dot in its name.
            Some(circle) => format!("{}-{}.{circle}", self.run, crowd.name),
        }
    }

    /// The name of somebody of an envelope's circle, or outside it.
    pub fn name(&self, envelope: usize, person: Person) -> String {
        let circle = self.circle(envelope);
        match person {
            Person::Guest(number) => format!("{circle}-{number}"),
            Person::Outsider(number) => format!("{circle}-x{number}"),
        }
    }

    /// The request that creates an envelope.
    pub fn create(&self, envelope: usize) -> v1::CreateEnvelopeRequest {
        let crowd = self.crowd(envelope);
        let money = |minor_units| v1::Money {
            currency_code: crowd.currency.clone(),
            minor_units,
        };
        let mut request = v1::CreateEnvelopeRequest {
            sender: self.sender(crowd),
            request_id: format!("{}-{envelope}", self.run),
            passphrase: crowd.passphrase.clone(),
            greeting: format!("{} {envelope}", crowd.name),
            client_nonce: envelope.to_be_bytes().to_vec(),
            ..v1::CreateEnvelopeRequest::default()
        };
        if crowd.audience == Audience::Group {
            let group_id = self.circle(envelope);
            request.audience = Some(v1::Audience {
                audience: Some(v1::audience::Audience::Group(v1::audience::Group {
                    group_id,
                })),
            });
        }
        match crowd.kind {
            Kind::Lucky => {
                request.set_kind(v1::EnvelopeKind::Lucky);
                request.share_count = crowd.shares;
                request.split = Some(split(crowd.split));
                let total = money(crowd.total_minor());
                request.amount = Some(v1::create_envelope_request::Amount::Total(total));
            }
            Kind::Equal => {
                request.set_kind(v1::EnvelopeKind::Equal);
                request.share_count = crowd.shares;
                let each = money(crowd.share_mean_minor);
                request.amount = Some(v1::create_envelope_request::Amount::PerShare(each));
            }
            Kind::Exclusive => {
                request.set_kind(v1::EnvelopeKind::Exclusive);
                request.exclusive_currency_code.clone_from(&crowd.currency);
                request.exclusive_shares = (0_u32..)
                    .zip(named_minor(crowd))
                    .map(|(number, amount_minor)| v1::ExclusiveShare {
                        grabber: self.name(envelope, Person::Guest(number)),
                        amount_minor,
                    })
                    .collect();
            }
        }
        request
    }

    /// The grab of a person.
    pub fn grab(&self, envelope: usize, person: Person) -> v1::GrabRequest {
        let crowd = self.crowd(envelope);
        let outside = matches!(person, Person::Outsider(_));
        v1::GrabRequest {
            envelope_id: self.ids[envelope].clone(),
            grabber: self.name(envelope, person),
            group_id: match crowd.audience {
                Audience::Anyone => String::new(),
                Audience::Group if outside => format!("{}-elsewhere", self.run),
                Audience::Group => self.circle(envelope),
            },
            passphrase: crowd.passphrase.clone(),
            ..v1::GrabRequest::default()
        }
    }
}

fn split(split: Split) -> v1::Split {
    use v1::split::Rule;
    v1::Split {
        rule: Some(match split {
            Split::DoubleMean => Rule::DoubleMean(v1::split::DoubleMean {}),
            Split::BrokenStick => Rule::BrokenStick(v1::split::BrokenStick {}),
            Split::Even => Rule::Even(v1::split::Even {}),
        }),
    }
}

/// Amounts that differ and still have the crowd's mean: pairs, one as far below it as the other is
/// above.
fn named_minor(crowd: &Crowd) -> Vec<i64> {
    let mean = crowd.share_mean_minor;
    (0..i64::from(crowd.shares))
        .map(|number| {
            let paired = number < i64::from(crowd.shares) / 2 * 2;
            let apart = if paired { (number / 2) % mean } else { 0 };
            if number % 2 == 0 {
                mean - apart
            } else {
                mean + apart
            }
        })
        .collect()
}

fn terms(crowd: &Crowd, number: usize) -> Terms {
    let total_minor = crowd.total_minor();
    // An even split of a multiple of the share count leaves no remainder to spread.
    let all_alike = crowd.kind == Kind::Equal || crowd.split == Split::Even;
    let (min_minor, max_minor) = if all_alike {
        (crowd.share_mean_minor, crowd.share_mean_minor)
    } else {
        (1, total_minor)
    };
    Terms {
        name: format!("{} envelope {number}", crowd.name),
        total_minor,
        share_count: crowd.shares,
        min_minor,
        max_minor,
        named_minor: (crowd.kind == Kind::Exclusive).then(|| named_minor(crowd)),
        guests: crowd.grabbers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_take_envelopes_in_turn_and_have_members_of_their_own() {
        let mut profile = crate::profile::load("smoke").unwrap();
        profile.crowds.truncate(1);
        let world = |circles| {
            let mut profile = profile.clone();
            profile.crowds[0].circles = circles;
            let schedule = crate::schedule::plan(&profile);
            World::new("r".into(), profile, schedule)
        };
        let guest = Person::Guest(7);
        let two = world(2);
        let names: Vec<String> = (0..3).map(|it| two.name(it, guest)).collect();
        assert_eq!(names, ["r-chat.0-7", "r-chat.1-7", "r-chat.0-7"]);
        let one = world(0);
        assert_eq!(one.name(0, guest), one.name(1, guest));
        assert_ne!(one.name(0, guest), one.name(0, Person::Outsider(7)));
    }

    #[test]
    fn named_amounts_are_positive_and_sum_to_the_total() {
        let mut crowd = crate::profile::load("smoke").unwrap().crowds.remove(0);
        for (shares, share_mean_minor) in [(1, 1), (2, 1), (3, 5), (30, 1_500), (1_000, 7)] {
            crowd.shares = shares;
            crowd.share_mean_minor = share_mean_minor;
            let amounts = named_minor(&crowd);
            assert!(amounts.iter().all(|amount| *amount >= 1));
            assert_eq!(amounts.iter().sum::<i64>(), crowd.total_minor());
        }
    }
}
