//! All that knows protobuf or a status code.

mod deadline;
pub mod listen;
