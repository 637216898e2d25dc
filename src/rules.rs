//! Rules that the simulation switches off, one at a time, to see that it would notice. A release build
//! has no switch: there every rule is kept.

/// What settlement, and the gathering of a dealt envelope, owe their order to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An entry leaves the outbox only after the books gave a verdict on each of its records.
    DeleteAfterCommit,
    /// The remainder is refunded only when all that was granted is in the books.
    RefundAfterDrain,
    /// The books say that shares are gathered before any stripe is halted.
    SaidFirst,
    /// A stripe that is repaired once the books say so gives nothing.
    DryOnceSaid,
    /// Who is passed on asks the first stripe after the shares were gathered, and not before.
    GatheredFirst,
}

#[cfg(not(any(test, feature = "test-hooks")))]
pub(crate) const fn keeps(_: Rule) -> bool {
    true
}

#[cfg(any(test, feature = "test-hooks"))]
pub(crate) use switch::keeps;
#[cfg(any(test, feature = "test-hooks"))]
pub use switch::switch_off;

#[cfg(any(test, feature = "test-hooks"))]
mod switch {
    //! By thread: a simulated history runs on one.

    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static OFF: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// From now on this thread breaks this rule, and none with `None`.
    pub fn switch_off(rule: Option<Rule>) {
        OFF.set(rule);
    }

    pub(crate) fn keeps(rule: Rule) -> bool {
        OFF.get() != Some(rule)
    }
}
