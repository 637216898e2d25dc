//! Asking the server: connection, deadline, repeating what may be repeated, errors as sentences.
//!
//! # Bounds
//! [`TRIES_MAX`] tries a call with waits of at most [`WAIT_MAX`]: a server that restarts in 5 s is
//! met again, one that is gone is told of after about 4 s.
//!
//! # Ordering
//! Every RPC of the contract is idempotent by keys that its request carries, so a try whose answer
//! was lost is repeated with the same request, never with a new one.

use std::future::Future;
use std::time::Duration;

use red_envelope_proto::v1;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;
use v1::account_service_client::AccountServiceClient;
use v1::admin_service_client::AdminServiceClient;
use v1::envelope_service_client::EnvelopeServiceClient;
use v1::info_service_client::InfoServiceClient;

use super::args::At;
use super::{EXIT_NO, EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE, Failed};
use crate::config::Environment;
use crate::domain::money::Currencies;

/// Where a server listens if nobody says otherwise.
const SERVER: &str = "http://127.0.0.1:50051";
/// Where it listens for operators.
const ADMIN: &str = "http://127.0.0.1:50052";
/// Tries of one call.
pub const TRIES_MAX: u32 = 6;
/// The first wait between two tries; it doubles.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest wait, also if the server asks for more.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
/// For a connection on loopback or in one data centre.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A connection and what every request says.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    /// As in every request; empty for the default.
    pub tenant: String,
    timeout: Duration,
}

impl Client {
    /// Connects to the server for clients.
    pub async fn connect(at: &At, environment: &Environment) -> Result<Self, Failed> {
        let named = at.server.as_deref().or(environment.get("SERVER"));
        let tenant = at.tenant.as_deref().or(environment.get("TENANT"));
        Ok(Self {
            channel: channel(named.unwrap_or(SERVER), "--server").await?,
            tenant: tenant.unwrap_or_default().to_owned(),
            timeout: Duration::from_secs(at.timeout),
        })
    }

    /// Connects to the server for operators.
    pub async fn connect_admin(
        admin: Option<&str>,
        timeout: u64,
        environment: &Environment,
    ) -> Result<Self, Failed> {
        let named = admin.or(environment.get("ADMIN")).unwrap_or(ADMIN);
        Ok(Self {
            channel: channel(named, "--admin").await?,
            tenant: String::new(),
            timeout: Duration::from_secs(timeout),
        })
    }

    pub fn envelopes(&self) -> EnvelopeServiceClient<Channel> {
        EnvelopeServiceClient::new(self.channel.clone())
    }

    pub fn accounts(&self) -> AccountServiceClient<Channel> {
        AccountServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// What the server is and promises.
    pub async fn about(&self) -> Result<v1::GetServiceInfoResponse, Failed> {
        let info = InfoServiceClient::new(self.channel.clone());
        let request = v1::GetServiceInfoRequest {
            tenant: self.tenant.clone(),
        };
        self.ask(request, |request| {
            let mut info = info.clone();
            async move { info.get_service_info(request).await }
        })
        .await
    }

    /// The currencies, asking the server only where a code is not in ISO 4217.
    pub async fn currencies<'a>(
        &self,
        codes: impl IntoIterator<Item = &'a str>,
    ) -> Result<Currencies, Failed> {
        let iso = Currencies::default();
        if codes.into_iter().all(|code| iso.find(code).is_ok()) {
            return Ok(iso);
        }
        let about = self.about().await?;
        let declared = about.declared_units.iter().map(|unit| {
            let decimals = u8::try_from(unit.decimals).unwrap_or(u8::MAX);
            (unit.code.as_str(), decimals)
        });
        Currencies::with_declared(declared)
            .map_err(|e| failed(&Status::internal(format!("the server declares {e}"))))
    }

    /// One call, repeated while its answer says that this may help.
    pub async fn ask<Q, A, F, W>(&self, request: Q, mut call: F) -> Result<A, Failed>
    where
        Q: Clone,
        F: FnMut(Request<Q>) -> W,
        W: Future<Output = Result<Response<A>, Status>>,
    {
        let mut wait = WAIT_FIRST;
        for last in (1..=TRIES_MAX).map(|n| n == TRIES_MAX) {
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(self.timeout);
            let status = match call(attempt).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let asked = status
                .get_details_retry_info()
                .map(|retry| retry.retry_delay.unwrap_or(wait));
            let may_help = asked.is_some() || status.code() == Code::Unavailable;
            if last || !may_help {
                return Err(failed(&status));
            }
            tokio::time::sleep(asked.unwrap_or(wait).min(WAIT_MAX)).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
        unreachable!("the last try returns")
    }
}

async fn channel(url: &str, flag: &str) -> Result<Channel, Failed> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let endpoint = Endpoint::from_shared(with_scheme)
        .ok()
        .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
        .filter(|endpoint| endpoint.uri().port().is_some())
        .ok_or_else(|| {
            Failed::usage(format!(
                "{flag} {url:?} is no address of a server: write http://HOST:PORT, such as {SERVER}"
            ))
        })?;
    let connected = endpoint
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .tcp_nodelay(true)
        .connect()
        .await;
    connected.map_err(|_| Failed {
        sentence: format!(
            "no server answers at {url}. Start one with `red-envelope serve`, or name another \
             with {flag}"
        ),
        reason: "UNREACHABLE".to_owned(),
        exit: EXIT_UNAVAILABLE,
        short: None,
    })
}

/// A status as a sentence that says what to do.
pub(super) fn failed(status: &Status) -> Failed {
    let details = status.get_error_details();
    let reason = details.error_info().map_or_else(
        || code_name(status.code()).to_owned(),
        |info| info.reason.clone(),
    );
    let said = status.message();
    let (sentence, exit) = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => (rejected(status), EXIT_USAGE),
        Code::NotFound => {
            let hint = "Check the id, --as, --group and --tenant: to somebody outside its \
                        audience an envelope does not exist";
            (
                format!("{}. {hint}", sentence_of(said, "not found")),
                EXIT_NO,
            )
        }
        Code::FailedPrecondition | Code::PermissionDenied | Code::Aborted | Code::AlreadyExists => {
            (sentence_of(said, "refused"), EXIT_NO)
        }
        Code::Unavailable | Code::ResourceExhausted => {
            let why = sentence_of(said, "the server is too busy");
            (
                format!("{why}. Repeat the command; it takes effect only once"),
                EXIT_UNAVAILABLE,
            )
        }
        Code::DeadlineExceeded | Code::Cancelled => (
            "the server did not answer in time. Repeat the command to learn the outcome, or wait \
             longer with --timeout"
                .to_owned(),
            EXIT_UNAVAILABLE,
        ),
        Code::Unimplemented => (
            "the server does not know this request: it may be older than this program".to_owned(),
            EXIT_SOFTWARE,
        ),
        _ => {
            let why = sentence_of(said, "no reason given");
            (
                format!("the server failed: {why}. Its log says more"),
                EXIT_SOFTWARE,
            )
        }
    };
    let short = details.error_info().and_then(|info| {
        let minor = |name: &str| info.metadata.get(name)?.parse().ok();
        Some((minor("available_minor")?, minor("needed_minor")?))
    });
    Failed {
        sentence,
        reason,
        exit,
        short,
    }
}

fn sentence_of(said: &str, otherwise: &str) -> String {
    let said = super::words::clean(said.trim().trim_end_matches('.'));
    if said.is_empty() {
        otherwise.to_owned()
    } else {
        said
    }
}

/// Every field that the server named, one a line.
fn rejected(status: &Status) -> String {
    let fields = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    if fields.is_empty() {
        return sentence_of(status.message(), "the request is malformed");
    }
    let mut sentence = "the server rejected the request:".to_owned();
    for violation in fields {
        let field = super::words::clean(&violation.field);
        let says = super::words::clean(&violation.description);
        sentence.push_str(&format!("\n  {field}: {says}"));
    }
    sentence
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::NotFound => "NOT_FOUND",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded | Code::Cancelled => "DEADLINE_EXCEEDED",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        _ => "INTERNAL",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn a_rejection_names_every_field() {
        let details = ErrorDetails::with_bad_request(vec![
            FieldViolation::new("share_count", "must be at least 1"),
            FieldViolation::new("total.minor_units", "must be at least 1 minor unit, not 0"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "bad", details);
        let told = failed(&status);
        assert_eq!(
            told.sentence,
            "the server rejected the request:\n  share_count: must be at least 1\n  \
             total.minor_units: must be at least 1 minor unit, not 0"
        );
        assert_eq!(told.exit, EXIT_USAGE);
    }

    #[test]
    fn what_a_rule_refuses_is_a_no_with_the_servers_reason() {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            "INSUFFICIENT_FUNDS",
            "redenvelope.v1",
            std::collections::HashMap::new(),
        );
        let status = Status::with_error_details(
            Code::FailedPrecondition,
            "insufficient funds: 5 minor units are available, 8 are needed",
            details,
        );
        let told = failed(&status);
        assert_eq!(
            (told.reason.as_str(), told.exit),
            ("INSUFFICIENT_FUNDS", EXIT_NO)
        );
        assert!(told.sentence.starts_with("insufficient funds"));
    }

    #[test]
    fn words_of_a_server_can_not_move_the_cursor() {
        let told = failed(&Status::failed_precondition("no\u{1b}[2Jthing\r\n"));
        assert_eq!(told.sentence, "no\u{fffd}[2Jthing");
    }

    #[tokio::test]
    async fn an_address_that_is_none_and_a_server_that_is_not_there_say_what_to_do() {
        for bad in [
            "",
            "https://127.0.0.1:1",
            "127.0.0.1",
            "http://",
            "nonsense at all",
        ] {
            let told = channel(bad, "--server").await.unwrap_err();
            assert_eq!(told.exit, EXIT_USAGE, "{bad:?}: {}", told.sentence);
        }
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let told = channel(&address, "--server").await.unwrap_err();
        assert_eq!(told.exit, EXIT_UNAVAILABLE);
        assert!(
            told.sentence
                .contains("Start one with `red-envelope serve`")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_help_is_repeated_with_the_same_request_and_the_rest_is_not() {
        let client = Client {
            channel: Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
            tenant: String::new(),
            timeout: Duration::from_secs(1),
        };
        let mut tries = Vec::new();
        let answered = client
            .ask("the same", |request| {
                tries.push(request.into_inner());
                let busy = tries.len() < 3;
                async move {
                    if busy {
                        Err(Status::unavailable("restarting"))
                    } else {
                        Ok(Response::new(7))
                    }
                }
            })
            .await;
        assert_eq!(answered.unwrap(), 7);
        assert_eq!(tries, ["the same"; 3]);

        let mut tries = 0;
        let told = client
            .ask((), |_| {
                tries += 1;
                async { Err::<Response<()>, _>(Status::unavailable("gone")) }
            })
            .await;
        assert_eq!(told.unwrap_err().exit, EXIT_UNAVAILABLE);
        assert_eq!(tries, TRIES_MAX);

        let mut tries = 0;
        let told = client
            .ask((), |_| {
                tries += 1;
                async { Err::<Response<()>, _>(Status::internal("a bug")) }
            })
            .await;
        assert_eq!(told.unwrap_err().exit, EXIT_SOFTWARE);
        assert_eq!(tries, 1);
    }
}
