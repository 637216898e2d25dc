//! All that knows protobuf or a status code.
