//! Servers of tests: killed, paused, started again, told options.

use super::*;

fn get(server: &RedisServer, key: &[u8]) -> Value {
    server.command(&[b"GET", key])
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

#[test]
fn what_was_synced_is_there_after_a_kill_on_every_flavour() {
    for flavour in Flavour::ALL {
        let mut server = RedisServer::start(flavour, &[]);
        let (port, pid) = (server.port(), server.pid());
        assert_eq!(server.command(&[b"SET", b"k", b"v"]), Value::Okay);
        server.kill();
        assert!(server.try_command(&[b"PING"]).is_err());
        server.restart();
        assert_eq!(get(&server, b"k"), bulk("v"), "{flavour:?}");
        assert_eq!(server.port(), port);
        assert_ne!(server.pid(), pid);
        server.restart_empty();
        assert_eq!(get(&server, b"k"), Value::Nil, "{flavour:?}");
    }
}

#[test]
fn options_of_a_test_stand_above_the_defaults() {
    let options = [("appendfsync", "no"), ("requirepass", "letter-box")];
    let server = RedisServer::start(Flavour::Debian, &options);
    assert!(server.url().contains(":letter-box@"));
    let told = server.command(&[b"CONFIG", b"GET", b"appendfsync"]);
    let pair = [bulk("appendfsync"), bulk("no")].to_vec();
    assert_eq!(told, Value::Array(pair));
}

#[test]
fn a_paused_server_answers_when_it_goes_on() {
    let server = RedisServer::start(Flavour::Debian, &[]);
    let mut connection = server.connection().unwrap();
    server.pause();
    let brief = Duration::from_millis(50);
    connection.set_read_timeout(Some(brief)).unwrap();
    assert!(ask(&mut connection, &[b"PING"]).is_err());
    server.resume();
    let pong = Value::SimpleString("PONG".to_owned());
    assert_eq!(server.command(&[b"PING"]), pong);
}

#[test]
fn an_error_reply_is_a_value() {
    let server = RedisServer::start(Flavour::Debian, &[]);
    let Value::ServerError(error) = server.command(&[b"DANCE"]) else {
        panic!("it dances");
    };
    assert_eq!(error.code(), "ERR");
}
