//! A Redis that is another process, or lost its data, does nothing before it is registered; and it
//! is the fence of the library that keeps this: without it, the same calls have their effect.

use redis::Value;

use super::scene::{Scene, code_of, codes_of_grabs, functions};
use crate::domain::id::{Epoch, Partition};
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::register::LIBRARY;
use crate::hot::redis::reply::Reply;

/// What happens to a Redis.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Killed,
    Flushed,
    Replaced,
    Emptied,
}

const LOSSES: [Loss; 4] = [Loss::Killed, Loss::Flushed, Loss::Replaced, Loss::Emptied];

/// The library without its fence: the check answers that every epoch stands.
fn without_fence() -> String {
    let head = "local function other_epoch(partition, epoch, key)\n";
    let (before, rest) = LIBRARY.split_once(head).unwrap();
    let (_, after) = rest.split_once("\nend\n").unwrap();
    format!("{before}{head}  return nil\nend\n{after}")
}

/// Envelopes that could be grabbed, declined, closed, and settled before the loss.
struct Played {
    scene: Scene,
    lucky: Cast,
    named: Cast,
}

impl Played {
    fn new(library: &str) -> Self {
        let mut scene = Scene::new(&[]);
        scene.bring(library);
        scene.next_epoch();
        let (lucky, named) = (
            Cast::lucky(&[3; 9]),
            Cast::exclusive(&[("ann", 5), ("bob", 7)]),
        );
        scene.publish(&lucky);
        scene.publish(&named);
        let won = scene.grab(&lucky, &["zoe", "yan"]);
        assert_eq!(won, [Reply::Won, Reply::Won]);
        Self {
            scene,
            lucky,
            named,
        }
    }

    fn lose(&mut self, loss: Loss, library: &str) {
        match loss {
            Loss::Killed => self.scene.server.restart(),
            Loss::Flushed => drop(self.scene.ask(&[b"FLUSHALL"])),
            Loss::Replaced => {}
            Loss::Emptied => self.scene.server.restart_empty(),
        }
        self.scene.reconnect();
        if let Loss::Replaced | Loss::Emptied = loss {
            self.scene.bring(library);
        }
    }

    /// Every function but the one that registers: what it answers to both envelopes.
    fn call_everything(&mut self) -> Vec<(String, Value)> {
        let mut answers = Vec::new();
        for (name, _) in functions()
            .into_iter()
            .filter(|(name, _)| name != "register_2")
        {
            for cast in [self.lucky.clone(), self.named.clone()] {
                let answer = self.scene.call(&name, &cast);
                answers.push((name.clone(), answer));
            }
        }
        answers
    }
}

fn says_no_epoch(answer: &Value) -> bool {
    match codes_of_grabs(answer) {
        Some(codes) => codes.iter().all(|code| *code == Reply::Epoch),
        None => code_of(answer) == Some(Reply::Epoch),
    }
}

#[test]
fn a_server_that_was_lost_does_nothing_and_shows_nothing_before_it_is_registered() {
    for loss in LOSSES {
        let mut played = Played::new(LIBRARY);
        played.lose(loss, LIBRARY);
        let before = played.scene.dump();
        for (name, answer) in played.call_everything() {
            assert!(says_no_epoch(&answer), "{name} after {loss:?}: {answer:?}");
            let Value::Array(items) = answer else {
                continue;
            };
            assert_eq!(items[1..], [Value::Int(0)], "{name} after {loss:?}");
        }
        assert_eq!(played.scene.dump(), before, "{loss:?}");
        played.scene.next_epoch();
        let codes = played.scene.grab(&played.lucky, &["eve"]);
        let kept = matches!(loss, Loss::Killed | Loss::Replaced);
        let expected = if kept { Reply::Stale } else { Reply::Missing };
        assert_eq!(codes, [expected], "{loss:?}");
    }
}

#[test]
fn without_the_fence_a_server_that_was_lost_grants_shows_and_forgets() {
    let library = without_fence();
    for loss in LOSSES {
        let mut played = Played::new(&library);
        played.lose(loss, &library);
        let before = played.scene.dump();
        let answers = played.call_everything();
        let refused = answers.iter().filter(|(_, answer)| says_no_epoch(answer));
        assert_eq!(refused.count(), 0, "{loss:?}");
        assert_ne!(played.scene.dump(), before, "{loss:?}");
        let kept = matches!(loss, Loss::Killed | Loss::Replaced);
        let wins = |(_, answer): &&(String, Value)| {
            codes_of_grabs(answer).is_some_and(|codes| codes.contains(&Reply::Won))
        };
        // On an emptied server the same calls load, open and grab what may be sold out elsewhere.
        assert!(answers.iter().any(|a| wins(&a)), "{loss:?}, {kept}");
    }
}

#[test]
fn a_late_process_cannot_register_the_epoch_that_was_flushed() {
    let mut played = Played::new(LIBRARY);
    let stood = played.scene.epoch;
    played.lose(Loss::Flushed, LIBRARY);
    for late in [stood, Epoch(stood.0 - 1)] {
        played.scene.epoch = late;
        let answer = played.scene.call("register_2", &played.lucky);
        let none = Value::Array(vec![Value::Int(14), Value::Int(0)]);
        assert_eq!(answer, none, "{late:?}");
    }
    assert!(played.scene.dump().is_empty());
    played.scene.epoch = stood;
    played.scene.next_epoch();
}

#[test]
fn a_registration_for_another_process_sets_no_fence() {
    let mut played = Played::new(LIBRARY);
    // The ledger accepted the process before: it restarts, and the call arrives at its successor.
    let mut late = played.scene.words("register_2", &played.lucky);
    played.lose(Loss::Killed, LIBRARY);
    let before = played.scene.dump();
    for epoch in [played.scene.epoch.0, played.scene.epoch.0 + 1] {
        let at = late.len() - 3;
        late[at] = epoch.to_string().into_bytes();
        let none = Value::Array(vec![Value::Int(14), Value::Int(0)]);
        assert_eq!(played.scene.send(&late), none, "{epoch}");
    }
    assert_eq!(played.scene.dump(), before);
    assert_eq!(
        played.scene.code("grab_1", &played.lucky),
        Some(Reply::Epoch)
    );
    played.scene.next_epoch();
}

#[test]
fn a_registration_for_data_that_were_emptied_since_sets_no_fence() {
    // The ledger lets the data keep their epoch, or gives them the next one; then they are flushed and
    // the library is put there anew, all in one process.
    for ahead in [0, 1] {
        let mut played = Played::new(LIBRARY);
        played.scene.epoch.0 += ahead;
        let late = played.scene.words("register_2", &played.lucky);
        played.scene.ask(&[b"FLUSHALL"]);
        played.lose(Loss::Replaced, LIBRARY);
        let none = Value::Array(vec![Value::Int(14), Value::Int(0)]);
        assert_eq!(played.scene.send(&late), none, "{ahead}");
        assert!(played.scene.dump().is_empty(), "{ahead}");
        assert_eq!(
            played.scene.code("grab_1", &played.lucky),
            Some(Reply::Epoch)
        );
        played.scene.next_epoch();
    }
}

#[test]
fn a_registration_may_be_repeated_after_its_answer_was_lost() {
    let mut played = Played::new(LIBRARY);
    played.scene.epoch.0 += 1;
    let first = played.scene.words("register_2", &played.lucky);
    for _ in 0..2 {
        assert_eq!(code_of(&played.scene.send(&first)), Some(Reply::Ok));
    }
}

#[test]
fn an_epoch_never_goes_back() {
    let mut played = Played::new(LIBRARY);
    let stood = played.scene.epoch;
    for loss in [Loss::Replaced, Loss::Killed] {
        played.lose(loss, LIBRARY);
        let before = played.scene.dump();
        played.scene.epoch = Epoch(stood.0 - 1);
        let answer = played.scene.call("register_2", &played.lucky);
        let newer = Value::Int(i64::try_from(stood.0).unwrap());
        assert_eq!(
            answer,
            Value::Array(vec![Value::Int(14), newer]),
            "{loss:?}"
        );
        assert_eq!(played.scene.dump(), before);
        let key = played.scene.keys.epoch(Partition::ZERO);
        let stored = played.scene.ask(&[b"GET", key.as_bytes()]);
        assert_eq!(stored, Value::BulkString(stood.0.to_string().into_bytes()));
    }
}
