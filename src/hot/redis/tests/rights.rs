//! Rights that an administrator takes from the user while the service runs, and gives back: what can't be
//! written whole is not begun.

use redis::Value;

use super::scene::Scene;
use crate::hot::conformance::stage::Cast;
use crate::hot::redis::register::LIBRARY;
use crate::hot::redis::reply::Reply;

/// The user of the connection, as an administrator changes it.
fn rule(scene: &mut Scene, rule: &str) {
    let answer = scene.ask(&[b"ACL", b"SETUSER", b"default", rule.as_bytes()]);
    assert_eq!(answer, Value::Okay);
}

/// What a grab answers while the user lacks the right to a command, and whether it left something behind.
fn grabbed_without(scene: &mut Scene, right: &str, cast: &Cast) -> (Value, bool) {
    let before = scene.dump();
    rule(scene, &format!("-{right}"));
    let words = scene.words_of_grabs(&[(cast, &["ann"])]);
    let answer = scene.send(&words);
    rule(scene, &format!("+{right}"));
    (answer, scene.dump() != before)
}

fn is_refused(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOPERM")
}

/// Large enough that grabbers are listed, too.
fn casts() -> [Cast; 2] {
    [Cast::lucky(&[3; 2_000]), Cast::locked(&[5; 2_000])]
}

#[test]
fn a_grab_that_may_not_be_written_whole_is_not_begun() {
    let mut scene = Scene::new(&[]);
    for cast in casts() {
        scene.publish(&cast);
        for right in ["hset", "rpush"] {
            let (answer, is_changed) = grabbed_without(&mut scene, right, &cast);
            assert!(is_refused(&answer) && !is_changed, "{right}: {answer:?}");
        }
        // Whoever comes next has the share, and nobody else is owed it.
        assert_eq!(scene.grab(&cast, &["dan"]), [Reply::Won]);
        let dan = vec!["dan".to_owned()];
        assert_eq!(scene.winners(&cast).unwrap(), (dan.clone(), dan));
    }
}

#[test]
fn a_declined_share_that_may_not_be_written_whole_is_not_begun() {
    let mut scene = Scene::new(&[]);
    let cast = Cast::exclusive(&[("ann", 5), ("bob", 7)]);
    scene.publish(&cast);
    let before = scene.dump();
    rule(&mut scene, "-hset");
    let answer = scene.call("decline_1", &cast);
    rule(&mut scene, "+hset");
    assert!(is_refused(&answer), "{answer:?}");
    assert_eq!(scene.dump(), before);
    assert_eq!(scene.code("decline_1", &cast), Some(Reply::Ok));
}

#[test]
fn without_the_question_about_rights_a_share_would_be_owed_twice() {
    let question = "  local refused = refusal(t.writes, t.writes_n)\n";
    assert_eq!(LIBRARY.matches(question).count(), 1);
    let mut scene = Scene::new(&[]);
    scene.bring(&LIBRARY.replace(question, "  local refused = nil\n"));
    scene.next_epoch();
    let cast = Cast::lucky(&[3, 4]);
    scene.publish(&cast);
    let (answer, is_changed) = grabbed_without(&mut scene, "hset", &cast);
    assert!(!matches!(answer, Value::Okay) && is_changed, "{answer:?}");
    scene.grab(&cast, &["dan"]);
    let (told, owed) = scene.winners(&cast).unwrap();
    assert_eq!((told.len(), owed.len()), (1, 2));
}
