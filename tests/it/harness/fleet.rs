//! Several servers on one Redis and one PostgreSQL, and the people around them.

use std::error::Error as _;
use std::time::Duration;

use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};

use red_envelope_proto::v1::GrabResponse;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::proxy::Proxy;
use super::record::Record;
use super::server::{Hot, Server, Start};
use super::world::{World, grab_of};

/// How long a client goes on repeating a call: the bound that the promises name.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a process says when it hears how many settle.
const DIVIDED: &str = "settlement is divided anew";

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Processes, and the stores that they share.
pub struct Fleet {
    /// Each with clients of its own. They end before the stores.
    pub processes: Vec<World>,
    /// Those that only settle.
    pub settlers: Vec<Server>,
    /// Who may grab what.
    pub redis: RedisServer,
    /// The books.
    pub postgres: PostgresServer,
    /// The address of the books.
    pub books: String,
    /// Of every grab, through whatever process.
    pub record: Record,
    /// Between each process and one of its stores, by its place, in a fleet that is on wires.
    pub wires: Vec<Proxy>,
    wired: Option<Store>,
}

/// To which store the wires of a fleet lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// PostgreSQL.
    Books,
    /// Redis.
    Redis,
}

impl Fleet {
    /// So many processes on new stores.
    pub async fn of(count: usize) -> Self {
        Self::new(count, None).await
    }

    /// The same, with a wire between each of them and this store.
    pub async fn on_wires_to(store: Store, count: usize) -> Self {
        Self::new(count, Some(store)).await
    }

    async fn new(count: usize, wired: Option<Store>) -> Self {
        let postgres = tokio::task::spawn_blocking(|| {
            let postgres = PostgresServer::start(Release::Debian, &[]);
            (postgres.database(), postgres)
        });
        Self::over(postgres.await.unwrap(), count, wired).await
    }

    /// So many processes on books at this address, which are in this PostgreSQL.
    pub async fn over(
        (books, postgres): (String, PostgresServer),
        count: usize,
        wired: Option<Store>,
    ) -> Self {
        let mut fleet = Self {
            processes: Vec::new(),
            settlers: Vec::new(),
            redis: RedisServer::start(Flavour::Debian, &[]),
            books,
            postgres,
            record: Record::default(),
            wires: Vec::new(),
            wired,
        };
        for _ in 0..count {
            fleet.join(Start::default()).await;
        }
        fleet
    }

    /// One more process, under these circumstances.
    pub async fn join(&mut self, start: Start) {
        let port = self.wired.map(|store| match store {
            Store::Books => parts(&self.books).1,
            Store::Redis => self.redis.port(),
        });
        if let Some(port) = port {
            self.wires.push(Proxy::to(port).await);
        }
        let start = self.start(start, self.processes.len());
        let process = self.around(Server::start(start).await).await;
        process.until_ready().await;
        self.processes.push(process);
    }

    /// One more process that only settles.
    pub async fn join_settler(&mut self, start: Start) {
        let start = self.start(start, self.processes.len());
        self.settlers.push(Server::start(start).await);
    }

    /// The process at this place ended, however; another one begins on its folder.
    pub async fn again(&mut self, place: usize, start: Start) {
        let start = self.start(start, place);
        let before = self.processes.remove(place);
        let process = self.around(before.server.again(start).await).await;
        self.processes.insert(place, process);
    }

    async fn around(&self, server: Server) -> World {
        World::recorded(server, None, self.record.clone()).await
    }

    /// The flags by which a process finds the stores, and the keys of the first one.
    pub fn flags(&self) -> Vec<String> {
        self.start(Start::default(), self.processes.len()).flags
    }

    /// The name of the database of the books.
    pub fn database(&self) -> &str {
        let last = self.books.rsplit('/').next().unwrap_or_default();
        last.split('?').next().unwrap_or_default()
    }

    /// How the process at this place finds the stores, and the keys of the first one.
    fn start(&self, start: Start, place: usize) -> Start {
        let wire = |to| (self.wired == Some(to)).then(|| self.wires.get(place));
        let redis = match wire(Store::Redis).flatten() {
            None => self.redis.url(),
            Some(wire) => format!("redis://127.0.0.1:{}", wire.port()),
        };
        let books = match wire(Store::Books).flatten() {
            None => self.books.clone(),
            Some(wire) => {
                let (host, _, name) = parts(&self.books);
                format!("{host}:{}/{name}", wire.port())
            }
        };
        let mut start = Start {
            hot: Hot::Redis,
            // On a wire that swallows replies there is no use in waiting for them.
            usual_timing: start.usual_timing || self.wired == Some(Store::Redis),
            ..start
        }
        .reaching_at(&redis);
        start.flags.extend(["--ledger".to_owned(), books]);
        if let Some(first) = self.processes.first() {
            let keys = first.server.data_folder().join("seal.key");
            start
                .flags
                .extend(["--data-keys".to_owned(), keys.display().to_string()]);
        }
        start
    }

    /// Waits until the partitions are divided among these processes.
    pub async fn until_divided(&self) {
        for process in &self.processes {
            let divided = async || process.server.log().contains(DIVIDED);
            until("the partitions were divided", divided).await;
        }
    }

    /// Waits until the first process knows that so many settle: those whose leases run.
    pub async fn until_divided_by(&self, count: u64) {
        let process = &self.processes[0];
        let knows = async || {
            let log = process.server.log();
            let divided = log.lines().rfind(|line| line.contains(DIVIDED));
            // Before it is told anything else, a process takes itself to be alone.
            let of = divided.map_or(Some(1), |line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["of"].as_u64()
            });
            of == Some(count)
        };
        until("the first one knows how many settle", knows).await;
    }

    /// What the books answer to a statement.
    pub fn ask_the_books(&self, statement: &str) -> String {
        self.postgres.sql(self.database(), statement)
    }

    /// Everybody's clocks beside the true time.
    pub fn set_clock_ms(&self, offset_ms: i64) {
        for process in &self.processes {
            process.server.set_clock_ms(offset_ms);
        }
        for settler in &self.settlers {
            settler.set_clock_ms(offset_ms);
        }
    }

    /// A client of each process.
    pub fn clients(&self) -> Vec<Client> {
        self.processes.iter().map(|p| p.envelopes.clone()).collect()
    }

    /// All grabs at once, spread over the processes.
    pub async fn rush(
        &self,
        id: &str,
        grabbers: impl IntoIterator<Item = String>,
    ) -> Vec<(String, GrabResponse)> {
        rush(&self.record, &self.clients(), id, grabbers).await
    }
}

/// An address of books up to the port, the port, and the database.
fn parts(books: &str) -> (&str, u16, &str) {
    let (host, rest) = books.rsplit_once(':').unwrap();
    let (port, name) = rest.split_once('/').unwrap();
    (host, port.parse().unwrap(), name)
}

/// The client of a process.
pub type Client = EnvelopeServiceClient<Channel>;

/// All grabs at once, spread over these clients. Who gets no answer repeats at the next one.
pub async fn rush(
    record: &Record,
    clients: &[Client],
    id: &str,
    grabbers: impl IntoIterator<Item = String>,
) -> Vec<(String, GrabResponse)> {
    let mut crowd = JoinSet::new();
    for (number, grabber) in grabbers.into_iter().enumerate() {
        let (clients, id) = (clients.to_vec(), id.to_owned());
        let record = record.clone();
        crowd.spawn(async move {
            let answer = asked_around(&clients, number, |mut client| {
                let (record, grab) = (record.clone(), grab_of(&id, &grabber));
                async move { record.grab(&mut client, grab).await }
            });
            (grabber.clone(), answer.await)
        });
    }
    crowd.join_all().await
}

/// One call, through the client of this number and the next ones, until it is answered.
pub async fn asked_around<Answer, Called>(
    clients: &[Client],
    number: usize,
    once: impl Fn(Client) -> Called,
) -> Answer
where
    Called: Future<Output = Result<Answer, Status>>,
{
    let began = Instant::now();
    for turn in number.. {
        match once(clients[turn % clients.len()].clone()).await {
            Ok(answer) => return answer,
            Err(status) => {
                let retryable = [
                    Code::Unavailable,
                    // Ten thousand at once are more than a debug build serves in half a second.
                    Code::ResourceExhausted,
                    Code::DeadlineExceeded,
                    Code::Cancelled,
                ];
                // A connection that broke off is told by the client itself, under any code.
                let broke_off = status.source().is_some();
                assert!(broke_off || retryable.contains(&status.code()), "{status}");
                assert!(began.elapsed() < PATIENCE, "{status}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("a call is repeated until it is answered")
}

/// Waits until a condition is met: a minute, the bound that the promises name.
pub async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
    let latest = Instant::now() + PATIENCE;
    seen_by(latest, what, async || met().await.then_some(())).await;
}

/// Looks until there is something to be seen, until this instant at the least.
pub async fn seen_by<Seen>(
    latest: Instant,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<Seen>,
) -> Seen {
    loop {
        let in_time = Instant::now() <= latest;
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(in_time, "not in time: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// For so long nothing is done.
pub async fn rests(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Between two looks, or two people.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Long enough for what was begun beside it to be under way.
pub async fn shortly() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}
