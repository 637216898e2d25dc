//! Pages over the sorted sets of ids, of which some lead nowhere.

use super::mended::stage;
use crate::domain::id::{EnvelopeId, Partition};
use crate::hot::conformance::stage::Cast;
use crate::hot::{HotStore, Mark};

/// More than a page.
const ASTRAY: u8 = 30;
const PAGE: usize = 2;

#[tokio::test]
async fn a_page_of_marks_is_full_unless_it_is_the_last_whatever_leads_nowhere() {
    let stage = stage().await;
    let store = &*stage.store;
    let mut frozen = Vec::new();
    for _ in 0..5 {
        let cast = Cast::lucky(&[5, 7]);
        cast.publish(store).await;
        store.freeze(&store.epochs(), cast.id).await.unwrap();
        frozen.push((cast.id, Mark::Books));
    }
    frozen.sort_unstable_by_key(|(id, _)| *id);
    // Before all of them, and behind the first.
    let key = store.core.keys.marked(Partition::ZERO);
    for number in 0..ASTRAY {
        let mut behind = frozen[0].0.to_bytes();
        behind[15] = behind[15].wrapping_add(number + 1);
        for id in [[number; 16], behind] {
            if frozen
                .iter()
                .all(|(other, _)| EnvelopeId::from_bytes(id) != *other)
            {
                let add = [b"ZADD", key.as_bytes(), b"0", &id[..]];
                stage.server.command(&add);
            }
        }
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.marked(after, PAGE).await.unwrap();
        after = page.last().map(|(id, _)| *id);
        let last = page.len() < PAGE;
        found.extend(page);
        if last {
            break;
        }
    }
    assert_eq!(found, frozen);
}
