//! The wire does what the tests take it to do.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::proxy::{Proxy, SILENCE};

/// A server that answers every byte with itself plus one, and tells which bytes reached it.
async fn counting_server() -> (u16, watch::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, saw) = watch::channel(Vec::new());
    tokio::spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let seen = seen.clone();
            clients.spawn(async move {
                while let Ok(byte) = client.read_u8().await {
                    seen.send_modify(|bytes| bytes.push(byte));
                    if client.write_u8(byte + 1).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (port, saw)
}

async fn client_of(proxy: &Proxy) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()))
        .await
        .unwrap()
}

async fn asked(client: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
    client.write_u8(byte).await?;
    client.read_u8().await
}

#[tokio::test]
async fn bytes_go_both_ways_until_the_wire_is_cut() {
    let (port, _) = counting_server().await;
    let proxy = Proxy::to(port).await;
    let mut client = client_of(&proxy).await;
    assert_eq!(asked(&mut client, 1).await.unwrap(), 2);
    proxy.cut();
    let error = client.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(asked(&mut client_of(&proxy).await, 3).await.unwrap(), 4);
}

#[tokio::test]
async fn a_swallowed_reply_is_of_a_request_that_arrived() {
    let (port, mut saw) = counting_server().await;
    let proxy = Proxy::to(port).await;
    let mut client = client_of(&proxy).await;
    assert_eq!(asked(&mut client, 1).await.unwrap(), 2);
    proxy.swallow_replies(true);
    assert!(asked(&mut client, 5).await.is_err());
    saw.wait_for(|bytes| *bytes == [1, 5]).await.unwrap();
    assert_eq!(proxy.swallowed(), 1);
    proxy.swallow_replies(false);
    assert_eq!(asked(&mut client_of(&proxy).await, 7).await.unwrap(), 8);
}

#[tokio::test]
async fn only_a_request_that_holds_the_bytes_is_not_answered() {
    let (port, mut saw) = counting_server().await;
    let proxy = Proxy::to(port).await;
    proxy.swallow_replies_to(Some(&[5]));
    let mut client = client_of(&proxy).await;
    assert_eq!(asked(&mut client, 1).await.unwrap(), 2);
    assert!(asked(&mut client, 5).await.is_err());
    saw.wait_for(|bytes| *bytes == [1, 5]).await.unwrap();
    assert_eq!((proxy.swallowed(), proxy.unanswered()), (1, 1));
    proxy.swallow_replies_to(None);
    assert_eq!(asked(&mut client_of(&proxy).await, 5).await.unwrap(), 6);
}

#[tokio::test]
async fn a_refused_connection_is_reset_and_others_stay() {
    let (port, _) = counting_server().await;
    let proxy = Proxy::to(port).await;
    let mut early = client_of(&proxy).await;
    assert_eq!(asked(&mut early, 1).await.unwrap(), 2);
    proxy.refuse(true);
    let late = async { asked(&mut client_of(&proxy).await, 1).await };
    assert!(late.await.is_err());
    assert_eq!(asked(&mut early, 3).await.unwrap(), 4);
}

#[tokio::test]
async fn stalled_bytes_arrive_when_the_wire_flows_again() {
    let (port, saw) = counting_server().await;
    let proxy = Proxy::to(port).await;
    let mut client = client_of(&proxy).await;
    assert_eq!(asked(&mut client, 1).await.unwrap(), 2);
    proxy.stall(true);
    let brief = tokio::time::timeout(SILENCE, asked(&mut client, 9));
    assert!(brief.await.is_err());
    assert_eq!(*saw.borrow(), [1]);
    proxy.stall(false);
    assert_eq!(client.read_u8().await.unwrap(), 10);
}

#[tokio::test]
async fn late_replies_arrive_in_their_order_and_none_is_lost_where_the_server_ends() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        for byte in [1, 2, 3] {
            client.write_u8(byte).await.unwrap();
        }
    });
    let proxy = Proxy::to(port).await;
    let late_by = Duration::from_millis(30);
    proxy.slow_replies(late_by);
    let began = Instant::now();
    let mut heard = Vec::new();
    client_of(&proxy)
        .await
        .read_to_end(&mut heard)
        .await
        .unwrap();
    assert_eq!(heard, [1, 2, 3]);
    assert!(began.elapsed() >= late_by);
}
