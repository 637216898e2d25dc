//! Questions before a store that a test holds back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex as Lock;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;

/// Turns that a test gives to the tasks until something must have happened.
const TURNS_MAX: usize = 100_000;
/// A question to which there is no answer.
const POISON: u32 = 4_711;

/// A store that answers when it is let, and notes what it was asked at once.
struct Store {
    open: watch::Sender<bool>,
    asked: Lock<Vec<Vec<u32>>>,
    value: AtomicU32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ask(u32);

impl Question for Ask {
    type Stores = Store;
    type Answer = (u32, u32);

    async fn ask(store: &Store, asked: Vec<Self>) -> Result<Vec<(u32, u32)>, ApiError> {
        let value = store.value.load(Ordering::SeqCst);
        let numbers: Vec<u32> = asked.iter().map(|Ask(number)| *number).collect();
        store.asked.lock().push(numbers.clone());
        let mut open = store.open.subscribe();
        let opened = open.wait_for(|open| *open).await;
        opened.map_err(|_| ApiError::Unavailable("the test is over".into()))?;
        if numbers.contains(&POISON) {
            return Err(ApiError::Unavailable("poison".into()));
        }
        Ok(numbers.into_iter().map(|number| (number, value)).collect())
    }
}

type Answers = JoinSet<(u32, Result<(u32, u32), ApiError>)>;

struct Stage {
    store: Arc<Store>,
    together: Arc<Together<Ask>>,
}

impl Stage {
    fn open() -> Self {
        let store = Arc::new(Store {
            open: watch::Sender::new(true),
            asked: Lock::default(),
            value: AtomicU32::new(0),
        });
        let together = Arc::new(Together::new(Arc::clone(&store)));
        Self { store, together }
    }

    fn set_open(&self, open: bool) {
        self.store.open.send_replace(open);
    }

    fn asked(&self) -> Vec<Vec<u32>> {
        self.store.asked.lock().clone()
    }

    fn ask(&self, answers: &mut Answers, number: u32) {
        let together = Arc::clone(&self.together);
        answers.spawn(async move { (number, together.ask(Ask(number)).await) });
    }

    /// Asks one after the other until each worker waits for the store; what comes now waits for them.
    async fn busy() -> (Self, Answers) {
        let (stage, mut answers) = (Self::open(), JoinSet::new());
        stage.set_open(false);
        for worker in 0..WORKERS {
            stage.ask(&mut answers, 0);
            until(|| stage.asked().len() == worker + 1).await;
        }
        (stage, answers)
    }

    async fn queued(&self, count: usize) {
        until(|| self.together.queued() == count).await;
    }
}

async fn until(happened: impl Fn() -> bool) {
    for _ in 0..TURNS_MAX {
        if happened() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not happen");
}

#[tokio::test]
async fn what_comes_while_others_are_asked_is_one_call_and_each_question_is_asked_once() {
    let (stage, mut answers) = Stage::busy().await;
    for number in 0..250 {
        stage.ask(&mut answers, number % 30);
    }
    stage.queued(250).await;
    stage.set_open(true);
    while let Some(answer) = answers.join_next().await {
        let (number, answer) = answer.unwrap();
        assert_eq!(answer.unwrap().0, number);
    }
    let calls = stage.asked();
    // Three times a hundred at the most.
    assert_eq!(calls.len(), WORKERS + 3);
    for call in &calls[WORKERS..] {
        let each: BTreeSet<_> = call.iter().collect();
        assert!(each.len() == call.len() && call.len() <= 30, "{call:?}");
    }
}

#[tokio::test]
async fn an_answer_was_read_after_it_was_asked_for() {
    let (stage, mut answers) = Stage::busy().await;
    // The same as is being asked: its answer would be of before.
    stage.store.value.store(1, Ordering::SeqCst);
    let later = stage.together.ask(Ask(0));
    let opening = async {
        stage.queued(1).await;
        stage.set_open(true);
    };
    let (later, ()) = tokio::join!(later, opening);
    assert_eq!(later.unwrap(), (0, 1));
    while let Some(answer) = answers.join_next().await {
        assert_eq!(answer.unwrap().1.unwrap(), (0, 0));
    }
}

#[tokio::test]
async fn a_question_that_has_no_answer_keeps_nobody_else_from_one() {
    let (stage, mut answers) = Stage::busy().await;
    for number in [1, POISON, 2] {
        stage.ask(&mut answers, number);
    }
    stage.queued(3).await;
    stage.set_open(true);
    while let Some(answer) = answers.join_next().await {
        let (number, answer) = answer.unwrap();
        assert_eq!(answer.is_err(), number == POISON, "{number}: {answer:?}");
    }
    let mut calls = stage.asked().split_off(WORKERS);
    calls[1..].sort_unstable();
    assert_eq!(calls, [vec![1, 2, POISON], vec![1], vec![2], vec![POISON]]);
    // One that nobody shared is not asked again.
    assert!(stage.together.ask(Ask(POISON)).await.is_err());
    assert_eq!(stage.asked().len(), WORKERS + 5);
}

#[tokio::test]
async fn who_has_stopped_waiting_is_not_asked_for() {
    let (stage, mut answers) = Stage::busy().await;
    let mut gone = JoinSet::new();
    stage.ask(&mut gone, 1);
    stage.ask(&mut answers, 2);
    stage.queued(2).await;
    gone.shutdown().await;
    stage.set_open(true);
    while let Some(answer) = answers.join_next().await {
        answer.unwrap().1.unwrap();
    }
    assert_eq!(stage.asked()[WORKERS..], [[2]]);
}

#[tokio::test]
async fn beyond_the_queue_a_question_is_shed_at_once() {
    let (stage, mut answers) = Stage::busy().await;
    for _ in 0..QUESTIONS_QUEUED_MAX {
        stage.ask(&mut answers, 1);
    }
    stage.queued(QUESTIONS_QUEUED_MAX).await;
    let shed = stage.together.ask(Ask(0)).await;
    assert!(matches!(shed, Err(ApiError::Shed(Full::Looks))));
    stage.set_open(true);
    while let Some(answer) = answers.join_next().await {
        answer.unwrap().1.unwrap();
    }
    stage.together.ask(Ask(0)).await.unwrap();
}
