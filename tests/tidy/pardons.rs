//! The exceptions from the rules, each with its reason. One that nothing needs any more fails.

/// One exception: what `rule` finds at `path` with `what` in its message is let pass.
pub struct Pardon {
    pub rule: &'static str,
    pub path: &'static str,
    pub what: &'static str,
    /// Why the rule is right and this place is, too.
    pub reason: &'static str,
}

pub const PARDONS: &[Pardon] = &[
    Pardon {
        rule: "a_lint_is_expected_never_allowed",
        path: "proto/src/lib.rs",
        what: "#[expect",
        reason: "generated code: which lints fire depends on the generator's version",
    },
    Pardon {
        rule: "a_technology_is_named_in_its_room_only",
        path: "tests/model/world.rs",
        what: "`rusqlite`",
        reason: "an audit is tried on books that were edited behind the ledger's back",
    },
    Pardon {
        rule: "a_technology_is_named_in_its_room_only",
        path: "loadtest/tests/real/planted.rs",
        what: "`rusqlite`",
        reason: "errors are planted behind the ledger's back, to see that a rehearsal finds them",
    },
];
