//! After the last answer: what was promised is compared with what is there.
//!
//! | step | must hold |
//! |---|---|
//! | sum up | each envelope's answers fit together (`book`) |
//! | recall | what nobody took goes back; everything else ends by being empty |
//! | close | every envelope closes in time, having paid what was told and refunded the rest |
//! | list | ListGrabs tells the shares that the grabbers were told |
//! | balances | every account holds what its owner was told, to the minor unit |
//!
//! Every call is repeated while the server is away (`again`). If it stays away, what was found until then is
//! told, and that the rest could not be compared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

use crate::abreast;
use crate::again::{again, told};
use crate::book::{Held, Violations};
use crate::prepare::deposit_minor;
use crate::schedule::Person;
use crate::world::World;

/// How often envelopes that have not closed are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Ids in one BatchGetEnvelopes, as the contract bounds them.
const BATCH_GET_MAX: usize = 100;
/// Shares in one page of ListGrabs, as the contract bounds them.
const PAGE_SIZE: i32 = 1_000;

/// What was found.
#[derive(Default)]
pub struct Findings {
    /// What is wrong.
    pub violations: Violations,
    /// Envelopes that closed.
    pub closed: usize,
    /// Envelopes that were recalled because shares were left.
    pub recalled: usize,
    /// From the last answer until the last envelope closed.
    pub close_s: f64,
    /// Accounts that were compared.
    pub accounts: usize,
    /// Sums by currency.
    pub money: BTreeMap<String, Sums>,
    /// Why the comparison is not complete.
    pub failed: Option<String>,
}

/// One currency's money in this run, in minor units.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Sums {
    /// Put into envelopes.
    pub funded_minor: i64,
    /// What grabbers were told.
    pub won_minor: i64,
    /// What went back to senders.
    pub refunded_minor: i64,
}

/// Compares everything, or as much as the server lets it.
///
/// `all_closed` is called between the last close and the comparison, which takes minutes for a million people.
pub async fn finish(world: &World, channel: &Channel, all_closed: impl AsyncFnOnce()) -> Findings {
    let mut found = Findings::default();
    let ended = compare_all(world, channel, all_closed, &mut found).await;
    found.failed = ended.err().map(|error| format!("{error:#}"));
    found
}

async fn compare_all(
    world: &World,
    channel: &Channel,
    all_closed: impl AsyncFnOnce(),
    found: &mut Findings,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let client = EnvelopeServiceClient::new(channel.clone());
    for envelope in 0..world.ids.len() {
        let mut page = world.page(envelope);
        page.sum_up();
        found.violations.absorb(page.take_violations());
    }
    let left: Vec<usize> = (0..world.ids.len())
        .filter(|envelope| !world.page(*envelope).is_all_taken())
        .collect();
    found.recalled = left.len();
    let refused = abreast::all(left, |envelope| recall(client.clone(), world, envelope)).await?;
    let mut not_recalled = Violations::default();
    for detail in refused.into_iter().flatten() {
        not_recalled.note(detail);
    }
    found.violations.join(not_recalled);
    let mut wrong = Violations::default();
    let closed = close(world, &client, began, found, &mut wrong).await;
    found.violations.join(wrong);
    closed?;
    found.close_s = began.elapsed().as_secs_f64();
    all_closed().await;
    found.violations.join(list(world, &client).await?);
    let (accounts, wrong) = balances(world, channel).await?;
    found.accounts = accounts;
    found.violations.join(wrong);
    Ok(())
}

/// Answers what is wrong where the server has none left of an envelope of which the grabbers were not told
/// all: it is over already.
fn recall(
    client: EnvelopeServiceClient<Channel>,
    world: &World,
    envelope: usize,
) -> impl Future<Output = anyhow::Result<Option<String>>> + Send + use<> {
    let request = v1::RecallEnvelopeRequest {
        envelope_id: world.ids[envelope].clone(),
        sender: world.sender(world.crowd(envelope)),
        request_id: format!("{}-recall-{envelope}", world.run),
        ..v1::RecallEnvelopeRequest::default()
    };
    async move {
        let id = request.envelope_id.clone();
        let answer = again(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.recall_envelope(request).await }
        });
        match answer.await {
            Ok(_) => Ok(None),
            Err(status) if status.code() == Code::FailedPrecondition => Ok(Some(format!(
                "envelope {id} has shares left, by what was told, and could not be recalled: {}",
                status.message()
            ))),
            Err(status) => {
                Err(told(status).context(format!("envelope {id} could not be recalled")))
            }
        }
    }
}

/// Waits for every envelope to close; those that don't are violations.
async fn close(
    world: &World,
    client: &EnvelopeServiceClient<Channel>,
    began: Instant,
    found: &mut Findings,
    wrong: &mut Violations,
) -> anyhow::Result<()> {
    let wait = Duration::from_secs(world.profile.fire.close_s_max);
    let mut open: Vec<usize> = (0..world.ids.len()).collect();
    while !open.is_empty() {
        let mut still_open = Vec::new();
        // A page has one viewer, so it holds envelopes of one crowd.
        for page in open
            .chunk_by(|a, b| world.schedule.envelopes[*a] == world.schedule.envelopes[*b])
            .flat_map(|same_crowd| same_crowd.chunks(BATCH_GET_MAX))
        {
            let seen = look(world, client, page).await?;
            for (envelope, seen) in page.iter().zip(seen) {
                if seen.state() == v1::EnvelopeState::Closed {
                    found.closed += 1;
                    check_closed(world, *envelope, &seen, wrong);
                    add_up(world, *envelope, found);
                } else {
                    still_open.push(*envelope);
                }
            }
        }
        open = still_open;
        if open.is_empty() || began.elapsed() > wait {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    for envelope in open {
        let id = &world.ids[envelope];
        let name = world.page(envelope).terms().name.clone();
        wrong.note(format!("{name} ({id}) did not close within {wait:?}"));
    }
    Ok(())
}

async fn look(
    world: &World,
    client: &EnvelopeServiceClient<Channel>,
    page: &[usize],
) -> anyhow::Result<Vec<v1::Envelope>> {
    let request = v1::BatchGetEnvelopesRequest {
        envelope_ids: page.iter().map(|it| world.ids[*it].clone()).collect(),
        viewer: world.sender(world.crowd(page[0])),
        ..v1::BatchGetEnvelopesRequest::default()
    };
    let seen = again(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.batch_get_envelopes(request).await }
    });
    let seen = seen
        .await
        .map_err(told)
        .context("BatchGetEnvelopes failed")?;
    ensure!(
        seen.missing.is_empty() && seen.envelopes.len() == page.len(),
        "the sender does not see the own envelopes {:?}",
        seen.missing
    );
    seen.envelopes
        .into_iter()
        .map(|it| it.envelope.context("an answer without an envelope"))
        .collect()
}

fn check_closed(world: &World, envelope: usize, seen: &v1::Envelope, wrong: &mut Violations) {
    let page = world.page(envelope);
    let terms = page.terms();
    let paid = page.paid_minor();
    let progress = seen.progress.clone().unwrap_or_default();
    let minor = |money: Option<v1::Money>| money.map_or(0, |it| it.minor_units);
    let books = (
        progress.taken_count,
        minor(progress.settled),
        minor(progress.refunded),
    );
    let told = (page.holders(), paid, terms.total_minor - paid);
    let name = &terms.name;
    if books != told {
        wrong.note(format!(
            "{name} closed with (taken, settled, refunded) {books:?}; grabbers were told {told:?}"
        ));
    }
    // Ties go to the lowest number.
    let best = page
        .held()
        .map(|(_, held)| held)
        .max_by_key(|held| (held.amount_minor, std::cmp::Reverse(held.number)));
    let shown = seen.best_luck.clone().map(|share| Held {
        number: share.number,
        amount_minor: minor(share.amount),
    });
    if best != shown {
        wrong.note(format!("{name}: best luck is {best:?}, shown is {shown:?}"));
    }
}

fn add_up(world: &World, envelope: usize, found: &mut Findings) {
    let page = world.page(envelope);
    let (total, paid) = (page.terms().total_minor, page.paid_minor());
    let sums = found.money.entry(world.crowd(envelope).currency.clone());
    let sums = sums.or_default();
    sums.funded_minor += total;
    sums.won_minor += paid;
    sums.refunded_minor += total - paid;
}

/// ListGrabs tells every share as its grabber was told it, and no other.
async fn list(
    world: &World,
    client: &EnvelopeServiceClient<Channel>,
) -> anyhow::Result<Violations> {
    let mut wrong = Violations::default();
    let lists = abreast::all(0..world.ids.len(), |envelope| {
        list_one(
            client.clone(),
            world.ids[envelope].clone(),
            world.sender(world.crowd(envelope)),
        )
    })
    .await?;
    for (envelope, listed) in lists.into_iter().enumerate() {
        let page = world.page(envelope);
        let mut told: Vec<(u32, String, i64)> = page
            .held()
            .map(|(guest, held)| {
                let name = world.name(envelope, Person::Guest(guest));
                (held.number, name, held.amount_minor)
            })
            .collect();
        told.sort_unstable();
        if listed != told {
            wrong.note(format!(
                "{}: ListGrabs has {} shares, not the {} that grabbers were told",
                page.terms().name,
                listed.len(),
                told.len()
            ));
        }
    }
    Ok(wrong)
}

async fn list_one(
    client: EnvelopeServiceClient<Channel>,
    envelope_id: String,
    viewer: String,
) -> anyhow::Result<Vec<(u32, String, i64)>> {
    let mut shares = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListGrabsRequest {
            envelope_id: envelope_id.clone(),
            viewer: viewer.clone(),
            page_size: PAGE_SIZE,
            page_token,
            ..v1::ListGrabsRequest::default()
        };
        let page = again(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.list_grabs(request).await }
        });
        let page = page.await.map_err(told).context("ListGrabs failed")?;
        shares.extend(page.shares.into_iter().map(|share| {
            let minor = share.amount.map_or(0, |it| it.minor_units);
            (share.number, share.grabber, minor)
        }));
        if page.next_page_token.is_empty() {
            return Ok(shares);
        }
        page_token = page.next_page_token;
    }
}

/// Guests hold what they won over all envelopes of their crowd, senders what came back.
async fn balances(world: &World, channel: &Channel) -> anyhow::Result<(usize, Violations)> {
    let mut expected: HashMap<String, (String, i64)> = HashMap::new();
    for crowd in &world.profile.crowds {
        let sender = world.sender(crowd);
        expected.insert(sender, (crowd.currency.clone(), deposit_minor(crowd)));
    }
    let mut circles = HashSet::new();
    for envelope in 0..world.ids.len() {
        let crowd = world.crowd(envelope);
        if circles.insert(world.circle(envelope)) {
            for number in 0..crowd.grabbers {
                let guest = world.name(envelope, Person::Guest(number));
                expected.insert(guest, (crowd.currency.clone(), 0));
            }
        }
        let page = world.page(envelope);
        let mut add = |owner: &str, minor: i64| {
            if let Some((_, balance)) = expected.get_mut(owner) {
                *balance += minor;
            }
        };
        add(&world.sender(crowd), -page.paid_minor());
        for (guest, held) in page.held() {
            add(
                &world.name(envelope, Person::Guest(guest)),
                held.amount_minor,
            );
        }
    }
    let client = AccountServiceClient::new(channel.clone());
    let compared = abreast::all(expected, |(owner, (currency, minor))| {
        compare(client.clone(), owner, currency, minor)
    })
    .await?;
    let accounts = compared.len();
    let mut wrong = Violations::default();
    for detail in compared.into_iter().flatten() {
        wrong.note(detail);
    }
    Ok((accounts, wrong))
}

async fn compare(
    client: AccountServiceClient<Channel>,
    owner: String,
    currency_code: String,
    expected_minor: i64,
) -> anyhow::Result<Option<String>> {
    let request = v1::GetBalanceRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        ..v1::GetBalanceRequest::default()
    };
    let answer = again(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.get_balance(request).await }
    });
    let answer = answer.await.map_err(told).context("GetBalance failed")?;
    let minor = |of: fn(&v1::Balance) -> Option<&v1::Money>| -> i64 {
        let moneys = answer.balances.iter().filter_map(of);
        moneys.map(|money| money.minor_units).sum()
    };
    let there = (
        minor(|it| it.available.as_ref()),
        minor(|it| it.pending.as_ref()),
        minor(|it| it.held.as_ref()),
    );
    let right = there == (expected_minor, 0, 0);
    Ok((!right).then(|| {
        format!(
            "{owner} has {currency_code} (available, pending, held) {there:?}, not {expected_minor}"
        )
    }))
}
