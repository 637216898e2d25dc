//! Precedence, wrong names, wrong values, the data folder and its keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::folder::{Folder, Ports};
use super::keys::Keys;
use super::*;

fn sources(file: Option<&Path>, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let own = |(key, text): &(&str, &str)| ((*key).to_owned(), (*text).to_owned());
    Sources {
        flags: flags.iter().map(own).collect(),
        file: file.map(Path::to_owned),
        environment: Environment::of(variables.iter().copied()),
    }
}

fn wrong(flags: &[(&str, &str)]) -> String {
    Config::load(&sources(None, &[], flags))
        .unwrap_err()
        .to_string()
}

fn wrong_file(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("red-envelope.toml");
    std::fs::write(&path, text).unwrap();
    let error = Config::load(&sources(Some(&path), &[], &[]))
        .unwrap_err()
        .to_string();
    error.replace(&path.display().to_string(), "FILE")
}

#[test]
fn the_manual_is_complete_and_holds_the_promised_defaults() {
    let (config, unread) = Config::load(&Sources::default()).unwrap();
    assert!(unread.is_empty());
    assert_eq!(config.grpc.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:50052");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.data.dir, Path::new("red-envelope-data"));
    // Every value of the manual became a setting, with a word on what it does.
    let values = |table: toml::Table| -> usize {
        table
            .values()
            .map(|section| section.as_table().unwrap().len())
            .sum()
    };
    assert_eq!(settings().len(), values(DEFAULTS.parse().unwrap()));
    for setting in settings() {
        assert!(setting.help.len() > 10, "{} is not explained", setting.key);
    }
}

#[test]
fn a_flag_beats_the_environment_beats_a_file_beats_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "[runtime]\nworkers = 8\n[log]\nlevel = \"warn\"\n").unwrap();
    let variable = [("RED_ENVELOPE_RUNTIME_WORKERS", "16")];
    let flag = [("runtime.workers", "32")];
    let workers = |file, variables: &[_], flags: &[_]| {
        let (config, _) = Config::load(&sources(file, variables, flags)).unwrap();
        (config.runtime.workers, config.log.level)
    };
    assert_eq!(workers(None, &[], &[]), (0, "info".to_owned()));
    assert_eq!(workers(Some(&path), &[], &[]), (8, "warn".to_owned()));
    assert_eq!(workers(Some(&path), &variable, &[]).0, 16);
    assert_eq!(workers(Some(&path), &variable, &flag).0, 32);
    let named = [("RED_ENVELOPE_CONFIG", path.to_str().unwrap())];
    assert_eq!(workers(None, &named, &[]).0, 8);
}

#[test]
fn an_unknown_name_is_rejected_with_the_nearest_known_one() {
    assert_eq!(
        wrong_file("[grpc]\nlistn = \"127.0.0.1:1\"\n"),
        "FILE: the key grpc.listn is unknown; did you mean grpc.listen?"
    );
    assert_eq!(
        wrong_file("[grcp]\nlisten = \"127.0.0.1:1\"\n"),
        "FILE: the key grcp is unknown; did you mean grpc?"
    );
    assert_eq!(
        wrong_file("[runtime]\nquite_another_thing = 1\n"),
        "FILE: the key runtime.quite_another_thing is unknown; red-envelope serve \
         --print-default-config lists all keys"
    );
    let misspelt = sources(None, &[("RED_ENVELOPE_GRPC_LISTN", "127.0.0.1:1")], &[]);
    assert_eq!(
        Config::load(&misspelt).unwrap_err().to_string(),
        "the environment variable RED_ENVELOPE_GRPC_LISTN is unknown; did you mean \
         RED_ENVELOPE_GRPC_LISTEN?"
    );
}

#[test]
fn variables_of_an_orchestrator_are_named_and_have_no_effect() {
    let variables = [
        ("RED_ENVELOPE_PORT_50051_TCP_PROTO", "tcp"),
        ("RED_ENVELOPE_SERVER", "x"),
    ];
    let (_, unread) = Config::load(&sources(None, &variables, &[])).unwrap();
    assert_eq!(unread, ["RED_ENVELOPE_PORT_50051_TCP_PROTO"]);
}

#[test]
fn a_wrong_value_is_rejected_with_what_to_write() {
    assert_eq!(
        wrong(&[("grpc.listen", "localhost")]),
        "grpc.listen must be an IP address and a port such as \"127.0.0.1:50051\", not \
         \"localhost\""
    );
    assert_eq!(
        wrong(&[("runtime.workers", "many")]),
        "--runtime-workers must be a whole number, not \"many\"; the default is 0"
    );
    assert_eq!(
        wrong(&[("runtime.workers", "2000")]),
        "runtime.workers must be between 0 and 1024"
    );
    assert_eq!(
        wrong(&[("envelope.sender_may_grab", "maybe")]),
        "--envelope-sender-may-grab must be true or false, not \"maybe\"; the default is true"
    );
    assert_eq!(
        wrong_file("[runtime]\nworkers = \"8\"\n"),
        "runtime.workers must look like its default, 0, not \"8\""
    );
    assert!(
        wrong(&[("transport.streams_per_connection_max", "5000000000")]).contains("5000000000")
    );
    assert!(wrong(&[("ready.unsettled_age_max_ms", "-1")]).contains("between 1000 and 86400000"));
    assert!(wrong(&[("log.level", "red_envelope=louder")]).starts_with("log.level"));
    assert!(wrong(&[("log.format", "xml")]).contains("xml"));
    assert!(wrong(&[("money.units", "POINTS")]).contains("POINTS=0,STARS=2"));
    assert!(wrong(&[("money.units", "CNY=2")]).contains("ISO 4217 has this code already"));
    assert!(wrong_file("[grpc\n").starts_with("FILE is not TOML: "));
}

#[test]
fn a_listener_beyond_loopback_or_two_on_one_address_are_refused() {
    for beyond in ["0.0.0.0:50051", "192.168.1.1:50051", "[::]:50051"] {
        let why = wrong(&[("grpc.listen", beyond)]);
        assert!(why.contains("loopback only: use 127.0.0.1:50051"), "{why}");
    }
    assert_eq!(
        wrong(&[("admin.listen", "127.0.0.1:50051")]),
        "grpc.listen and admin.listen are both 127.0.0.1:50051; give each listener its own port"
    );
    let free = [
        ("grpc.listen", "127.0.0.1:0"),
        ("admin.listen", "127.0.0.1:0"),
        ("http.listen", "[::1]:0"),
    ];
    assert!(Config::load(&sources(None, &[], &free)).is_ok());
}

#[test]
fn declared_units_come_from_flags_and_files_alike() {
    let (config, _) =
        Config::load(&sources(None, &[], &[("money.units", "POINTS=0, STARS=2")])).unwrap();
    let currencies = config.currencies().unwrap();
    assert_eq!(currencies.decimals(currencies.find("STARS").unwrap()), 2);
    assert!(currencies.find("POINTS").is_ok());
}

#[test]
fn nothing_is_made_good_unless_an_amount_of_a_known_currency_is_named() {
    let caps = |flags: &[(&str, &str)]| {
        let (config, _) = Config::load(&sources(None, &[], flags))?;
        config.ledger.make_good_max(&config.currencies()?)
    };
    assert!(caps(&[]).unwrap().is_empty());
    let named = caps(&[
        ("money.units", "POINTS=0"),
        ("ledger.make_good_max", "CNY=100000, POINTS=5"),
    ]);
    let named = named.unwrap();
    let named: Vec<_> = named.iter().map(|(c, max)| (c.code(), *max)).collect();
    assert_eq!(named, [("CNY", 100_000), ("POINTS", 5)]);
    for (wrong, why) in [("STARS=5", "STARS"), ("CNY=0", "0"), ("CNY", "CNY=100000")] {
        let told = caps(&[("ledger.make_good_max", wrong)]).unwrap_err();
        assert!(
            told.to_string().contains("make-good-max")
                || told.to_string().contains("make_good_max")
        );
        assert!(told.to_string().contains(why), "{told}");
    }
}

#[test]
fn variables_of_tests_need_a_build_for_tests() {
    for name in ["RED_ENVELOPE_TEST_CLOCK", "FAILPOINTS"] {
        let environment = Environment::of([(name, "/somewhere")]);
        assert_eq!(
            environment.test_clock().is_ok(),
            cfg!(feature = "test-hooks"),
            "{name}"
        );
    }
    assert_eq!(Environment::default().test_clock(), Ok(None));
}

fn counting(buffer: &mut [u8]) {
    for (byte, value) in buffer.iter_mut().zip(1..) {
        *byte = value;
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_data_folder_has_one_owner_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("deep/data");
    let folder = Folder::claim(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    let why = Folder::claim(&path).unwrap_err().to_string();
    assert!(why.contains("is in use by another red-envelope"), "{why}");
    drop(folder);
    Folder::claim(&path).unwrap();
    set_mode(&path, 0o770);
    let why = Folder::claim(&path).unwrap_err().to_string();
    assert!(
        why.contains("others can write into the data folder"),
        "{why}"
    );
}

#[test]
fn keys_are_made_once_and_only_the_owner_may_read_them() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder::claim(&parent.path().join("data")).unwrap();
    let made = folder.keys(None, counting).unwrap();
    let file = folder.path().join("seal.key");
    assert_eq!(mode(&file), 0o600);
    assert_eq!((made.seal.newest_id(), made.pepper.0[0]), (1, 33));
    let again = folder.keys(None, |_| panic!("the keys are there")).unwrap();
    assert_eq!(again.pepper.0, made.pepper.0);
    // Another process on the same books names the file; nobody makes one that is missing.
    let other = Folder::claim(&parent.path().join("other")).unwrap();
    let never = |_: &mut [u8]| panic!("nothing is made");
    let shared = other.keys(Some(&file), never).unwrap();
    assert_eq!(shared.pepper.0, made.pepper.0);
    let missing = parent.path().join("missing.key");
    let why = other.keys(Some(&missing), never).unwrap_err().to_string();
    assert!(why.contains("missing.key can't be read"), "{why}");

    set_mode(&file, 0o640);
    let why = folder.keys(None, counting).unwrap_err().to_string();
    assert!(why.contains("run chmod 600"), "{why}");
}

#[test]
fn a_second_seal_key_is_a_line_more_and_a_damaged_file_is_refused_without_quoting_it() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder::claim(&parent.path().join("data")).unwrap();
    folder.keys(None, counting).unwrap();
    let file = folder.path().join("seal.key");
    let text = std::fs::read_to_string(&file).unwrap();
    let second = format!("{text}# rotated\nseal 2 {}\n", "ab".repeat(32));
    std::fs::write(&file, second).unwrap();
    assert_eq!(Keys::read(&file).unwrap().seal.newest_id(), 2);

    let digits = "cd".repeat(31);
    for damaged in [
        String::new(),
        text.replace("keys 1", "keys 9"),
        text.replace("pepper", "salt"),
        format!("{text}seal 1 {}\n", "ab".repeat(32)),
        format!("{text}seal 2 {digits}\n"),
        "red-envelope keys 1\n".to_owned(),
    ] {
        std::fs::write(&file, &damaged).unwrap();
        let why = Keys::read(&file).unwrap_err().to_string();
        assert!(
            why.contains("seal.key: ") && !why.contains(&digits),
            "{why}"
        );
    }
}

#[test]
fn a_store_without_its_key_is_refused_instead_of_given_a_new_one() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder::claim(&parent.path().join("data")).unwrap();
    std::fs::write(folder.path().join("ledger.sqlite"), "x").unwrap();
    let why = folder.keys(None, counting).unwrap_err().to_string();
    assert!(why.contains("Put seal.key back from the backup"), "{why}");
}

#[test]
fn the_ports_are_announced_whole_and_forgotten_by_the_next_owner() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    let folder = Folder::claim(&path).unwrap();
    let ports = Ports {
        grpc: Some(1),
        admin: 2,
        http: 3,
    };
    folder.announce(ports).unwrap();
    let text = std::fs::read_to_string(path.join("ports.json")).unwrap();
    assert_eq!(text, "{\"grpc\":1,\"admin\":2,\"http\":3}\n");
    drop(folder);
    Folder::claim(&path).unwrap();
    assert!(!path.join("ports.json").exists());
}
