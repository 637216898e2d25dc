//! The pure half of this store, for the simulated one (`tests/sim`): what stands in a stripe, and who has which
//! share in it after a repair. What `library.lua` does with it is told there anew.

pub use super::dealt::joined;
pub use super::layout::{Meta, Part, Reader, grant_of, put_amount, value_of};
pub use super::plan::{Asked, Fields, Plan, plan};
pub use super::repair::{has_gathered, in_turn, may_stand};
