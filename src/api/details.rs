//! Gives google.rpc details to statuses that the transport made: bytes that are no message, a message
//! that is too large, a method that is not there.
//!
//! # Shape
//! | the transport says, without details | the caller is told |
//! |---|---|
//! | INTERNAL: the bytes are not the message | INVALID_ARGUMENT, which names the message as a whole |
//! | OUT_OF_RANGE: it is too large | the same, `MESSAGE_TOO_LARGE` |
//! | UNIMPLEMENTED: no such method or compression | the same, `UNIMPLEMENTED` |
//! | another code | the same, the code's name as the reason |
//!
//! An INTERNAL of ours always has details, so a bare one is the transport's.
//!
//! # Not here
//! Statuses in the trailers of health and reflection, whose contracts are not ours.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Layer, Service};

use super::status::{ApiError, ERROR_DOMAIN, code_name};

/// The status with details, if it had none.
pub(super) fn detailed(status: Status) -> Status {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return status;
    }
    let (reason, message) = match status.code() {
        Code::Internal => {
            let says = format!("can't be read as the message: {}", status.message());
            return ApiError::invalid("", says).to_status();
        }
        Code::OutOfRange => ("MESSAGE_TOO_LARGE", status.message()),
        Code::Unimplemented if status.message().is_empty() => {
            ("UNIMPLEMENTED", "this listener has no such method")
        }
        code => (code_name(code), status.message()),
    };
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(status.code(), message, details)
}

/// The layer.
#[derive(Clone, Copy, Debug)]
pub struct Details;

impl<S> Layer<S> for Details {
    type Service = Detailed<S>;

    fn layer(&self, inner: S) -> Detailed<S> {
        Detailed { inner }
    }
}

/// What the layer makes of a server.
#[derive(Clone, Debug)]
pub struct Detailed<S> {
    inner: S,
}

impl<S, I> Service<Request<I>> for Detailed<S>
where
    S: Service<Request<I>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // A failure before the first message has its status among the headers.
            match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != Code::Ok && status.details().is_empty() => {
                    Ok(detailed(status).into_http())
                }
                _ => Ok(response),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_status_gets_details_and_one_that_has_them_stays() {
        let reason = |status: &Status| status.get_details_error_info().map(|info| info.reason);
        let bytes = detailed(Status::internal("failed to decode"));
        assert_eq!(bytes.code(), Code::InvalidArgument);
        let named = bytes.get_details_bad_request().unwrap().field_violations;
        assert_eq!(named[0].field, "");
        for (code, expected) in [
            (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
            (Code::Unimplemented, "UNIMPLEMENTED"),
            (Code::Cancelled, "CANCELLED"),
        ] {
            let status = detailed(Status::new(code, ""));
            assert_eq!(
                (status.code(), reason(&status)),
                (code, Some(expected.into()))
            );
        }
        let ours = detailed(ApiError::Internal("ours".into()).to_status());
        assert_eq!(ours.code(), Code::Internal);
        assert_eq!(reason(&ours), Some("INTERNAL".into()));
    }
}
