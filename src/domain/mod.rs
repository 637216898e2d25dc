//! What is true of envelopes and money wherever they are kept.
//!
//! PURE: no async, no IO, no clock, no random numbers of its own. Instants, seeds and nonces come
//! in as values; the same arguments give the same answer in every process and for ever.
//!
//! | file | noun |
//! |---|---|
//! | `money` | an amount in minor units of a currency |
//! | `id` | names of things: envelope, tenant, person, partition |
//! | `envelope` | terms, states, limits of one envelope |
//! | `ack` | what an acknowledged grab survives |
//! | `audience` | who may grab |
//! | `grab` | asking for a share, and the answer |
//! | `split` | the rule that cuts a total into shares |
//! | `stripes` | which share and which grabber belong to which partition, where an envelope lies in several |
//! | `fairness` | seeds that are committed to before they are used |
//! | `posting` | balanced entries |
//! | `books` | the law of conservation |

pub mod ack;
pub mod audience;
pub mod books;
pub mod envelope;
pub mod fairness;
pub mod grab;
pub mod id;
pub mod money;
pub mod posting;
pub mod split;
pub mod stripes;
