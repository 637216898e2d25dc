//! Histories that somebody chose: what random ones find too seldom. Each is played with all rules, then without
//! one.

use std::sync::{Arc, Mutex};

use rand::SeedableRng;
use rand::rngs::StdRng;
use red_envelope::domain::envelope::{CloseReason, HotState};
use red_envelope::domain::id::{EnvelopeId, Partition};
use red_envelope::domain::stripes::{StripeCount, home};
use red_envelope::hot::{CloseReply, HotError};
use red_envelope::ledger::conformance::NOON_MS;
use red_envelope::rules::Rule as Kept;
use red_envelope_history::Answer;

use crate::books::Books;
use crate::hot::Hot;
use crate::net::{Net, Scheduler, Weather};
use crate::people::{Sending, Town, grabber};
use crate::process::Process;
use crate::stores::{Rule, Stores};
use crate::story::Off;
use crate::striped::{Lies, Striped, partitions, places};

/// Steps after which a call is stuck.
const STEPS_MAX: u32 = 5_000;
/// As many stripes as each envelope has here.
const STRIPES: u16 = 2;

fn stripes() -> StripeCount {
    StripeCount::new(STRIPES).expect("a good number")
}

/// One envelope of two stripes that is live, and two processes that do nothing by themselves.
struct Scene {
    net: Net,
    town: Arc<Town>,
    id: EnvelopeId,
}

impl Scene {
    fn new(share_count: u32, off: Option<Off>) -> Self {
        Off::switch(off);
        let off = off.and_then(Off::of_store);
        let rng = || StdRng::seed_from_u64(7);
        let stores = Stores {
            now_ms: NOON_MS,
            hot_off_ms: 0,
            books_off_ms: 0,
            hot: Hot::new(partitions(), rng()),
            books: Books::new(rng()),
            striped: Some(Striped::new(rng(), false, off)),
            heard: true,
            off,
        };
        let net = Net::new(rng(), stores, Weather::default());
        let sending = Sending {
            total_minor: i64::from(share_count) * 10,
            share_count,
            expires_in_ms: 60_000,
            stripes: STRIPES,
        };
        let town = Arc::new(Town::new(net.clone(), vec![sending]));
        for place in 0..2 {
            // Their loops are never played.
            let mut idle = Scheduler::new(net.clone());
            let process = Process::start(&mut idle, &net, place, 0);
            let mut processes = town.processes.lock().expect("a panic ends the history");
            processes.push(process);
        }
        let mut scene = Self {
            id: EnvelopeId::from_parts(0, [0; 14]),
            net,
            town,
        };
        let town = Arc::clone(&scene.town);
        scene.play(async move { town.send(0, 1).await });
        scene.id = scene.town.id(0).expect("it was sent");
        scene
    }

    fn process(&self, place: usize) -> Arc<Process> {
        let processes = self.town.processes.lock();
        Arc::clone(&processes.expect("a panic ends the history")[place])
    }

    fn partition(&self, stripe: usize) -> Partition {
        places(self.id, stripes())[stripe].1
    }

    /// Somebody's call, to its end.
    fn play<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> T {
        let answer = Arc::new(Mutex::new(None));
        let told = Arc::clone(&answer);
        let call = async move {
            let answer = call.await;
            *told.lock().expect("a panic ends the history") = Some(answer);
        };
        self.play_until(call, |_| false);
        let answer = answer.lock().expect("a panic ends the history").take();
        answer.expect("it came to its end")
    }

    /// Somebody's call, who dies once this is so.
    fn play_until(
        &self,
        call: impl Future<Output = ()> + Send + 'static,
        dies: impl Fn(&Striped) -> bool,
    ) {
        let mut scheduler = Scheduler::new(self.net.clone());
        scheduler.spawn(None, call);
        for _ in 0..STEPS_MAX {
            if !scheduler.people_left() || dies(self.net.shared().stores.striped_mut()) {
                return;
            }
            scheduler.step();
        }
        panic!("it does not end");
    }

    /// Who lives at a stripe, by turn.
    fn lives_at(&self, stripe: u16, turn: usize) -> usize {
        let of = stripes();
        let is_his = |who: &usize| home(self.id, &grabber(*who), of).index() == stripe;
        (0..).filter(is_his).nth(turn).expect("people are many")
    }

    /// A grab through the second process.
    fn grab(&self, who: usize) -> Option<Answer> {
        let (town, process, id) = (Arc::clone(&self.town), self.process(1), self.id);
        self.play(async move { town.grab_by(&process, (0, id), who).await })
    }

    /// The second stripe is lost, and stands again as it was `grants` grants ago; `None`: empty.
    fn lose_second(&self, grants: Option<u32>) {
        let partition = self.partition(1);
        {
            let mut shared = self.net.shared();
            let striped = shared.stores.striped_mut();
            let next = |lies: &Lies| lies.meta.next;
            let had = striped.lies(partition, self.id).map_or(0, next);
            striped.lose_as(partition, self.id, grants.map(|grants| had - grants));
        }
        for place in 0..2 {
            let process = self.process(place);
            self.play(async move { process.register().await });
        }
    }

    fn broken(&self) -> Option<String> {
        self.net.shared().stores.striped_mut().watch.broken.clone()
    }
}

/// Nobody misses anything with all rules, and somebody does without one.
fn is_missed(history: fn(Option<Off>) -> Option<String>, off: Off) {
    assert_eq!(history(None), None);
    let why = history(Some(off)).unwrap_or_else(|| panic!("nobody misses {off:?}"));
    println!("without {off:?}: {why}");
}

/// Who gathers dies when the first stripe has what is left. Then the second one is lost.
fn lost_when_it_was_gathered(off: Option<Off>) -> Option<String> {
    let scene = Scene::new(2, off);
    let (process, id, first) = (scene.process(0), scene.id, scene.partition(0));
    let gathers = async move { drop(process.publisher.gather(id).await) };
    scene.play_until(gathers, |striped| {
        let whole = |lies: &Lies| lies.meta.part.as_ref().is_some_and(|part| part.whole);
        let stands = |lies: &&Lies| lies.meta.state == HotState::Live && whole(lies);
        striped.lies(first, id).filter(stands).is_some()
    });
    scene.lose_second(None);
    for who in [(1, 0), (0, 0), (0, 1), (1, 1)] {
        let _told_by_the_watch = scene.grab(scene.lives_at(who.0, who.1));
    }
    scene.broken()
}

#[test]
fn who_halts_a_stripe_before_the_books_know_grants_a_share_twice() {
    is_missed(lost_when_it_was_gathered, Off::Kept(Kept::SaidFirst));
}

/// The second stripe was used up, and the first one as well. Then the second one loses a grant.
fn lost_when_it_was_empty(off: Option<Off>) -> Option<String> {
    let scene = Scene::new(4, off);
    for who in [(1, 0), (1, 1), (1, 2), (0, 0)] {
        let won = scene.grab(scene.lives_at(who.0, who.1));
        assert!(matches!(won, Some(Answer::Won(_))), "{won:?}");
    }
    scene.lose_second(Some(1));
    let _told_by_the_watch = scene.grab(scene.lives_at(1, 3));
    scene.broken()
}

#[test]
fn a_first_stripe_that_is_not_stale_by_others_never_gives_what_they_lost() {
    is_missed(lost_when_it_was_empty, Off::Store(Rule::StaleUnderOld));
}

/// Somebody wins at the first stripe after it was read, and before it is rebuilt.
fn won_while_it_was_rebuilt(off: Option<Off>) -> Option<String> {
    let scene = Scene::new(2, off);
    let (process, id, second) = (scene.process(0), scene.id, scene.partition(1));
    let mut scheduler = Scheduler::new(scene.net.clone());
    scheduler.spawn(None, async move {
        let _may_have_crossed = process.publisher.gather(id).await;
    });
    let mut others = 0..2;
    // Whenever something was done after the second one was halted, somebody asks at the first one.
    for _ in 0..STEPS_MAX {
        if !scheduler.people_left() {
            break;
        }
        scheduler.step();
        let mut shared = scene.net.shared();
        let dry = |lies: &Lies| lies.meta.is_dry();
        let halted = shared
            .stores
            .striped_mut()
            .lies(second, id)
            .is_some_and(dry);
        let read = shared.stores.striped_mut().reads_of(scene.partition(0)) > 0;
        drop(shared);
        if halted && read && others.next() == Some(0) {
            let _wins_or_waits = scene.grab(scene.lives_at(0, 0));
        }
    }
    for who in [(0, 1), (0, 2), (1, 0)] {
        let _told_by_the_watch = scene.grab(scene.lives_at(who.0, who.1));
    }
    scene.broken()
}

#[test]
fn a_first_stripe_that_grants_while_it_is_rebuilt_grants_a_share_twice() {
    is_missed(won_while_it_was_rebuilt, Off::Store(Rule::FirstHalted));
}

/// Somebody is passed on from a stripe that is used up, which loses a grant then.
fn passed_on_before_a_loss(off: Option<Off>) -> Option<String> {
    let scene = Scene::new(2, off);
    let (before, passed) = (scene.lives_at(1, 0), scene.lives_at(1, 1));
    for who in [before, passed] {
        let won = scene.grab(who);
        assert!(matches!(won, Some(Answer::Won(_))), "{won:?}");
    }
    scene.lose_second(Some(1));
    let _told_by_the_watch = scene.grab(passed);
    scene.broken()
}

#[test]
fn who_is_passed_on_before_anything_was_gathered_wins_twice() {
    is_missed(passed_on_before_a_loss, Off::Kept(Kept::GatheredFirst));
}

impl Scene {
    /// A close that one recalls by, past whoever looks first.
    fn close(&self) -> Result<CloseReply, HotError> {
        let (process, id) = (self.process(1), self.id);
        let terms = Arc::clone(&self.net.shared().stores.books.pages[&id].terms);
        self.play(async move {
            let under = process.hot.epochs();
            let reason = CloseReason::Recalled;
            process.hot.close(&under, id, terms, reason).await
        })
    }
}

fn taken(reply: Result<CloseReply, HotError>) -> Option<u32> {
    match reply {
        Ok(CloseReply::Over { taken_count, .. }) => Some(taken_count),
        _ => None,
    }
}

#[test]
fn shares_of_a_stripe_that_expired_before_it_was_gathered_are_not_taken() {
    let scene = Scene::new(4, None);
    let won = scene.grab(scene.lives_at(0, 0));
    assert!(matches!(won, Some(Answer::Won(_))), "{won:?}");
    scene.net.shared().pass(61_000);
    // The first one has the stripe expire, and the second one is passed on.
    for turn in 0..2 {
        let told = scene.grab(scene.lives_at(1, turn));
        assert_eq!(told, Some(Answer::Over));
    }
    assert_eq!(taken(scene.close()), Some(1));
}

#[test]
fn a_stripe_that_expired_ends_the_first_one_whatever_its_clock_says() {
    let scene = Scene::new(4, None);
    let ahead = |ms| scene.net.shared().stores.hot_off_ms = ms;
    ahead(61_000);
    let told = scene.grab(scene.lives_at(1, 0));
    assert_eq!(told, Some(Answer::Over));
    ahead(0);
    for who in [(1, 1), (1, 0), (0, 0)] {
        let told = scene.grab(scene.lives_at(who.0, who.1));
        assert_eq!(told, Some(Answer::Over));
    }
}

#[test]
fn a_close_in_the_middle_of_a_gathering_sends_no_winner_away() {
    let scene = Scene::new(4, None);
    let winner = scene.lives_at(0, 0);
    let won = scene.grab(winner).and_then(Answer::share);
    let (process, id, first) = (scene.process(0), scene.id, scene.partition(0));
    let gathers = async move { drop(process.publisher.gather(id).await) };
    scene.play_until(gathers, |striped| {
        let lies = striped.lies(first, id);
        lies.is_some_and(|lies| lies.meta.half_rebuilt())
    });
    assert_eq!(taken(scene.close()), None);
    let process = scene.process(1);
    let publishes = || {
        let publisher = Arc::clone(&process.publisher);
        async move { publisher.publish(id).await.map(drop) }
    };
    // Whoever rebuilds it may be about to end it.
    scene
        .play(publishes())
        .expect_err("it is not abandoned yet");
    scene.net.shared().pass(2_001);
    scene.play(publishes()).expect("it is brought back");
    assert_eq!(taken(scene.close()), Some(1));
    let told = scene.grab(winner);
    assert_eq!(told, won.map(Answer::Already));
}
