//! What must be so of dealt envelopes after every step, and of what was paid at the end.

use red_envelope::domain::grab::HeldShare;
use red_envelope::domain::id::EnvelopeId;

use crate::books::Books;
use crate::striped::Striped;
use crate::striped_watch::Watch;

/// No promise was broken to anybody, and of no envelope more was given away than was put in.
pub fn at_any_time(striped: &Striped, books: &Books) -> Result<(), String> {
    if let Some(why) = &striped.watch.broken {
        return Err(why.clone());
    }
    for (id, page) in &books.pages {
        let sheet = &page.sheet;
        let granted = striped.watch.standing(*id);
        let given = granted.map(|held| held.grant.amount_minor).sum::<i64>() + sheet.remainder;
        if given > sheet.total {
            return Err(format!(
                "{given} of {} of {id} were given away",
                sheet.total
            ));
        }
        if let Some(letter) = sheet.letters.first() {
            return Err(format!("{letter:?} of {id} can't be paid"));
        }
    }
    Ok(())
}

/// What was paid is what was granted.
pub fn paid(watch: &Watch, id: EnvelopeId, held: &HeldShare) -> Result<(), String> {
    match watch.is_given(id, held) {
        true => Ok(()),
        false => Err(format!(
            "{id}: {held:?} was paid, and nobody has granted it"
        )),
    }
}
