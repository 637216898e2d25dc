//! The operations of random days.

use proptest::prelude::*;
use red_envelope::domain::envelope::Kind;

/// What may happen on a random day. People are named by their place in the list of `random`,
/// envelopes by their order of sending, modulo how many there are.
#[derive(Clone, Debug)]
pub enum Op {
    Deposit {
        sender: usize,
        minor: i64,
    },
    Withdraw {
        sender: usize,
        minor: i64,
    },
    Create {
        sender: usize,
        kind: Kind,
        each_minor: i64,
        shares: u32,
        expires_in_ms: i64,
    },
    Grab {
        grabber: usize,
        envelope: usize,
    },
    Decline {
        grabber: usize,
        envelope: usize,
    },
    Recall {
        envelope: usize,
    },
    Freeze {
        envelope: usize,
    },
    Unfreeze {
        envelope: usize,
    },
    Break {
        envelope: usize,
    },
    Advance {
        ms: i64,
    },
    Drain,
    Sweep,
    Forget,
    Reopen,
}

/// Any of them, those of the burst most often.
pub fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![Just(Kind::Lucky), Just(Kind::Equal), Just(Kind::Exclusive)];
    let expiry = prop_oneof![Just(1_000), Just(60_000), Just(3_600_000)];
    let step = prop_oneof![Just(1), Just(1_000), Just(59_000), Just(700_000)];
    prop_oneof![
        2 => (0..2_usize, 1..500_i64).prop_map(|(sender, minor)| Op::Deposit { sender, minor }),
        1 => (0..2_usize, 1..300_i64).prop_map(|(sender, minor)| Op::Withdraw { sender, minor }),
        4 => (0..2_usize, kind, 1..50_i64, 1..5_u32, expiry).prop_map(
            |(sender, kind, each_minor, shares, expires_in_ms)| Op::Create {
                sender, kind, each_minor, shares, expires_in_ms,
            }
        ),
        10 => (0..4_usize, any::<usize>())
            .prop_map(|(grabber, envelope)| Op::Grab { grabber, envelope }),
        3 => (0..4_usize, any::<usize>())
            .prop_map(|(grabber, envelope)| Op::Decline { grabber, envelope }),
        1 => any::<usize>().prop_map(|envelope| Op::Recall { envelope }),
        1 => any::<usize>().prop_map(|envelope| Op::Freeze { envelope }),
        2 => any::<usize>().prop_map(|envelope| Op::Unfreeze { envelope }),
        1 => any::<usize>().prop_map(|envelope| Op::Break { envelope }),
        3 => step.prop_map(|ms| Op::Advance { ms }),
        3 => Just(Op::Drain),
        3 => Just(Op::Sweep),
        1 => Just(Op::Forget),
        1 => Just(Op::Reopen),
    ]
}
